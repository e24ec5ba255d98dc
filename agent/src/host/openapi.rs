//! The description of the agent's API (OpenAPI 3.1), made from the table of routes and from the types of
//! their bodies. `docs/openapi/agent.json` is a copy that a test compares.

use concertina_http::Method;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::routes::{Body, ROUTES, Route};

/// The description, as JSON with line breaks.
pub fn document() -> String {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        let operation = operation(route, &mut generator);
        if let Some(path) = path.as_object_mut() {
            path.insert(word(route.method).into(), operation);
        }
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Concertina agent",
            "description": "The agent of one host, on its unix socket.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost", "description": "through the agent's unix socket"}],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {"Problem": problem()},
        },
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

fn word(method: Method) -> &'static str {
    match method {
        Method::Get => "get",
        Method::Put => "put",
        Method::Post => "post",
        Method::Delete => "delete",
        Method::Other => "options",
    }
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut parameters = Vec::new();
    if route.path.contains("{name}") {
        parameters.push(json!({
            "name": "name", "in": "path", "required": true,
            "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"},
        }));
    }
    for (name, meaning) in route.query {
        parameters.push(json!({
            "name": name, "in": "query", "description": meaning, "schema": {"type": "boolean"},
        }));
    }
    let (status, body) = route.success;
    let mut success = json!({"description": "Done"});
    let content = match body {
        Body::Empty => None,
        Body::Json(describe) => Some(("application/json", json!({"schema": describe(generator)}))),
        Body::Lines(describe) => Some((
            "application/x-ndjson",
            json!({"schema": describe(generator)}),
        )),
        Body::Text(media) => Some((media, json!({"schema": {"type": "string"}}))),
    };
    if let (Some((media, content)), Some(success)) = (content, success.as_object_mut()) {
        success.insert("content".into(), json!({media: content}));
    }
    let mut responses = Map::new();
    responses.insert(status.to_string(), success);
    for status in route.failures {
        let problem = json!({"$ref": "#/components/responses/Problem"});
        responses.insert(status.to_string(), problem);
    }
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "responses": responses,
    });
    if let Some(operation) = operation.as_object_mut() {
        if !parameters.is_empty() {
            operation.insert("parameters".into(), parameters.into());
        }
        if let Some(describe) = route.request {
            let content = json!({"application/json": {"schema": describe(generator)}});
            let body = json!({"required": true, "content": content});
            operation.insert("requestBody".into(), body);
        }
    }
    operation
}

fn problem() -> Value {
    json!({
        "description": "What is wrong, in one sentence (RFC 9457)",
        "content": {"application/problem+json": {"schema": {
            "type": "object",
            "required": ["status", "title", "detail"],
            "properties": {
                "status": {"type": "integer"},
                "title": {"type": "string"},
                "detail": {"type": "string"},
            },
        }}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_copy_is_what_the_code_says() {
        let stored = include_str!("../../../docs/openapi/agent.json");
        let made = document();
        assert!(
            stored == made,
            "docs/openapi/agent.json is not what the code says: run \
             'concertina agent --openapi > docs/openapi/agent.json'"
        );
    }

    #[test]
    fn every_reference_leads_to_something() {
        let document: Value = serde_json::from_str(&document()).unwrap();
        let mut found = 0;
        let mut look = vec![&document];
        while let Some(value) = look.pop() {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                        found += 1;
                    }
                    look.extend(fields.values());
                }
                Value::Array(values) => look.extend(values),
                _ => {}
            }
        }
        assert!(found > 20, "{found}");
    }
}
