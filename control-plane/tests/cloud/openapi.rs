//! The OpenAPI document is made of the code, and the stored copy is that document.

/// With `CONCERTINA_WRITE_OPENAPI=1` the copy is written instead.
#[test]
fn the_stored_document_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi/control.json");
    let document = concertina_control::http::document();
    let text = format!("{}\n", document.to_pretty_json().unwrap());
    if std::env::var_os("CONCERTINA_WRITE_OPENAPI").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        stored == text,
        "docs/openapi/control.json is not what the code says: run this test with CONCERTINA_WRITE_OPENAPI=1"
    );
}

#[test]
fn every_operation_needs_a_key_and_says_its_problems() {
    let document = serde_json::to_value(concertina_control::http::document()).unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        if matches!(path.as_str(), "/healthz" | "/v1/openapi.json") {
            continue;
        }
        for (method, operation) in operations.as_object().unwrap() {
            assert_eq!(
                operation["security"][0]["key"],
                serde_json::json!([]),
                "{method} {path}"
            );
            assert!(
                operation["responses"].get("4XX").is_some(),
                "{method} {path}"
            );
        }
    }
}
