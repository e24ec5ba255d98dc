//! A strict reader of Prometheus' text format, for tests: it refuses what a scraper might let pass.

use std::collections::{BTreeMap, BTreeSet};

/// Metrics of one name.
#[derive(Debug, Default)]
pub struct Parsed {
    pub kind: String,
    pub help: String,
    pub samples: Vec<Sample>,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Families by name, or the first line that is wrong and why.
pub fn parse(text: &str) -> Result<BTreeMap<String, Parsed>, String> {
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("The last line has no end".into());
    }
    let mut families: BTreeMap<String, Parsed> = BTreeMap::new();
    let (mut current, mut help) = (String::new(), None);
    for line in text.lines() {
        let wrong = |why: &str| format!("{why}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, said) = rest.split_once(' ').ok_or_else(|| wrong("No help"))?;
            help = Some((
                name.to_owned(),
                unescape(said).ok_or_else(|| wrong("Bad escape"))?,
            ));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("No type"))?;
            let (helped, said) = help.take().ok_or_else(|| wrong("A type without help"))?;
            if helped != name || !is_name(name) {
                return Err(wrong("Not the name of the help, or none"));
            }
            let parsed = Parsed {
                kind: kind.into(),
                help: said,
                samples: Vec::new(),
            };
            if families.insert(name.to_owned(), parsed).is_some() {
                return Err(wrong("A family in two parts"));
            }
            current = name.to_owned();
        } else {
            let sample = sample(line).ok_or_else(|| wrong("No sample"))?;
            let family = families
                .get_mut(&current)
                .ok_or_else(|| wrong("No family"))?;
            let suffix = sample.name.strip_prefix(current.as_str());
            let suffixes: &[&str] = match family.kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                "gauge" | "counter" => &[""],
                _ => return Err(wrong("An unknown type")),
            };
            if !suffix.is_some_and(|suffix| suffixes.contains(&suffix)) {
                return Err(wrong("A sample of another family"));
            }
            family.samples.push(sample);
        }
    }
    families
        .iter()
        .try_for_each(|(name, family)| check(name, family))?;
    Ok(families)
}

fn check(name: &str, family: &Parsed) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for sample in &family.samples {
        if !seen.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(format!("{name} has a sample twice: {:?}", sample.labels));
        }
        if family.kind == "counter" && sample.value < 0.0 {
            return Err(format!("Counter {name} is negative"));
        }
    }
    // Conventions of names, as `promtool check metrics` has them.
    let counts = name.ends_with("_total");
    if counts != (family.kind == "counter") {
        return Err(format!("{name}: counters, and only they, end in _total"));
    }
    if family.kind == "histogram" {
        check_histogram(name, family)?;
    }
    Ok(())
}

fn check_histogram(name: &str, family: &Parsed) -> Result<(), String> {
    type Buckets = Vec<(f64, f64)>;
    let mut all: BTreeMap<BTreeMap<String, String>, (Buckets, Option<f64>, bool)> = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le");
        let entry = all.entry(labels).or_default();
        match (sample.name.rsplit('_').next(), bound) {
            (Some("bucket"), Some(le)) => {
                let bound = number(&le).ok_or_else(|| format!("{name}: le=\"{le}\""))?;
                entry.0.push((bound, sample.value));
            }
            (Some("count"), None) => entry.1 = Some(sample.value),
            (Some("sum"), None) => entry.2 = true,
            _ => return Err(format!("{name}: le belongs to buckets, and only to them")),
        }
    }
    for (labels, (buckets, count, has_sum)) in all {
        let rises = buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
        let last = buckets.last().copied();
        let whole = last.is_some_and(|(le, of)| le == f64::INFINITY && Some(of) == count);
        if !rises || !whole || !has_sum {
            return Err(format!("{name} {labels:?} is no whole histogram"));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(letters) && name.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        // Rust also reads "inf" and "infinity", which are not of this format.
        text if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => text.parse().ok(),
        _ => None,
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            let close = closing_quote(after)?;
            let value = unescape(after.get(..close)?)?;
            let is_new = labels.insert(label.to_owned(), value).is_none();
            if !is_name(label) || !is_new {
                return None;
            }
            rest = after.get(close + 1..)?;
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = rest.strip_prefix(',')?;
        }
    }
    let value = number(rest.strip_prefix(' ')?)?;
    is_name(name).then(|| Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(index)
    })
}

fn unescape(text: &str) -> Option<String> {
    let (mut plain, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            },
            c => c,
        });
    }
    Some(plain)
}

#[test]
fn what_is_wrong_is_refused() {
    let head = "# HELP a_total A.\n# TYPE a_total counter\n";
    assert!(parse(&format!("{head}a_total 1\n")).is_ok());
    for wrong in [
        "a_total 1",
        "a_total\n",
        "a_total one\n",
        "a_total inf\n",
        "a_total -1\n",
        "a_total 1\na_total 1\n",
        "b_total 1\n",
        "a_total{x=\"y} 1\n",
        "a_total{x=\"\\y\"} 1\n",
        "a_total{x=\"y\",x=\"z\"} 1\n",
        "a_total{x=\"y\"}1\n",
        "# HELP a_total A.\n# TYPE a_total counter\n",
        "# TYPE b gauge\n",
        "# HELP b B.\n# TYPE b counter\n",
        "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
        "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_count 1\n",
        "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n",
    ] {
        assert!(parse(&format!("{head}{wrong}")).is_err(), "{wrong}");
    }
}
