//! `usage` at the control plane.

use serde_json::{Value, json};

use super::Args;
use crate::failure::Usage;
use crate::output;
use crate::remote::{Remote, text};

/// Prints what instances have held.
pub fn run(args: &Args, remote: &Remote) -> anyhow::Result<i32> {
    if args.since.is_some() || args.verify {
        let detail = "--since and --verify are for instances of this host: the control plane checks each record as it comes";
        return Err(Usage(detail.into()).into());
    }
    let instances = match &args.name {
        Some(name) => vec![remote.instance(name)?],
        None => remote.all("/v1/instances")?,
    };
    let mut rows = Vec::new();
    for instance in &instances {
        let usage = remote.get(&format!("/v1/instances/{}/usage", text(instance, "id")))?;
        rows.push((text(instance, "name").to_owned(), usage));
    }
    let fields = [
        "seconds",
        "vcpu_seconds",
        "promised_gib_seconds",
        "resident_gib_seconds",
    ];
    if args.json {
        let with_name = |(name, usage): &(String, Value)| {
            let mut row = usage.clone();
            if let Value::Object(fields) = &mut row {
                fields.insert("name".into(), json!(name));
            }
            row
        };
        output::json(&rows.iter().map(with_name).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let number =
        |usage: &Value, field: &str| usage.get(field).and_then(Value::as_f64).unwrap_or(0.0);
    if args.csv {
        let mut text = format!("name,{}\n", fields.join(","));
        for (name, usage) in &rows {
            let values: Vec<String> = fields
                .iter()
                .map(|field| format!("{:.3}", number(usage, field)))
                .collect();
            text.push_str(&format!("{name},{}\n", values.join(",")));
        }
        output::write(text.as_bytes())?;
        return Ok(0);
    }
    let cells = |(name, usage): &(String, Value)| {
        let values = fields
            .iter()
            .map(|field| format!("{:.1}", number(usage, field)));
        std::iter::once(name.clone())
            .chain(values)
            .collect::<Vec<_>>()
    };
    let header = ["NAME", "SECONDS", "VCPU-S", "GIB-S", "RESIDENT GIB-S"];
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    output::line(&output::table(&header, &rows, &[1, 2, 3, 4]))?;
    Ok(0)
}
