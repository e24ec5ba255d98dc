//! How the types that are written in ways of their own look in JSON, for OpenAPI.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::policy::Rule;
use crate::units::{Bytes, Cpus, Quota};

macro_rules! schema {
    ($type:ty, $name:literal, $schema:tt) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

schema!(Bytes, "Bytes", {
    "description": "Bytes; a text like \"512M\" is read as well",
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]
});
schema!(Cpus, "Cpus", {
    "description": "CPUs, in thousandths at the finest; a text is read as well",
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]
});
schema!(Quota, "Quota", {
    "description": "CPUs, or \"max\"",
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]
});
schema!(Rule, "Rule", {
    "description": "A rule, like \"cpu > 75% for 5s: +1 cpu\"",
    "type": "string"
});
