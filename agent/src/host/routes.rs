//! What the agent's API serves: one table, by which requests are answered and from which its description
//! (OpenAPI) is made.

use concertina_api::event::Event;
use concertina_api::host::{HostStatus, LaunchRequest, PolicyInForce, Recommendation};
use concertina_api::instance::{InstanceResize, InstanceSize, InstanceStatus, StopRequest};
use concertina_api::policy::Policy;
use concertina_api::vm::ResizeReport;
use concertina_http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::api::{self, Call};
use concertina_http::Response;

/// Gives the description of a type.
pub(super) type Describe = fn(&mut SchemaGenerator) -> Schema;

/// What an answer has for a body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body {
    /// None.
    Empty,
    /// JSON of this type.
    Json(Describe),
    /// Lines of JSON of this type, until the stream ends.
    Lines(Describe),
    /// A text of this media type.
    Text(&'static str),
}

/// One operation.
pub(super) struct Route {
    pub method: Method,
    /// `{name}` stands for the name of an instance.
    pub path: &'static str,
    /// Its name in the description.
    pub id: &'static str,
    pub summary: &'static str,
    /// The body of the request.
    pub request: Option<Describe>,
    /// Parameters after the `?`: name, and what they mean.
    pub query: &'static [(&'static str, &'static str)],
    /// The status and the body of success.
    pub success: (u16, Body),
    /// Statuses of failure: a problem document (RFC 9457) each.
    pub failures: &'static [u16],
    pub answer: fn(&Call<'_>) -> Response,
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The table.
pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/v1/host",
        id: "getHost",
        summary: "The host: capacity, what is promised, who waits",
        request: None,
        query: &[],
        success: (200, Body::Json(of::<HostStatus>)),
        failures: &[],
        answer: api::host,
    },
    Route {
        method: Method::Get,
        path: "/v1/instances",
        id: "listInstances",
        summary: "All instances that are there",
        request: None,
        query: &[],
        success: (200, Body::Json(of::<Vec<InstanceStatus>>)),
        failures: &[],
        answer: api::instances,
    },
    Route {
        method: Method::Get,
        path: "/v1/instances/{name}",
        id: "getInstance",
        summary: "One instance: state, size, target, thresholds",
        request: None,
        query: &[],
        success: (200, Body::Json(of::<InstanceStatus>)),
        failures: &[404],
        answer: api::instance,
    },
    Route {
        method: Method::Put,
        path: "/v1/instances/{name}",
        id: "launchInstance",
        summary: "Launches an instance; answers when its guest runs",
        request: Some(of::<LaunchRequest>),
        query: &[],
        success: (201, Body::Json(of::<InstanceStatus>)),
        failures: &[400, 409, 422, 503],
        answer: api::launch,
    },
    Route {
        method: Method::Put,
        path: "/v1/instances/{name}/resize",
        id: "resizeInstance",
        summary: "Gives an instance another size; answers with what was reached. Of two requests at a \
                  time the newer one wins, and the older one is told so",
        request: Some(of::<InstanceResize>),
        query: &[],
        success: (200, Body::Json(of::<ResizeReport<InstanceSize>>)),
        failures: &[400, 404, 409, 422],
        answer: api::resize,
    },
    Route {
        method: Method::Put,
        path: "/v1/instances/{name}/stop",
        id: "stopInstance",
        summary: "Asks an instance to end; does not wait for the end",
        request: Some(of::<StopRequest>),
        query: &[],
        success: (202, Body::Empty),
        failures: &[400, 404],
        answer: api::stop,
    },
    Route {
        method: Method::Get,
        path: "/v1/instances/{name}/policy",
        id: "getPolicy",
        summary: "The policy in force, and its version",
        request: None,
        query: &[],
        success: (200, Body::Json(of::<PolicyInForce>)),
        failures: &[404],
        answer: api::policy,
    },
    Route {
        method: Method::Put,
        path: "/v1/instances/{name}/policy",
        id: "replacePolicy",
        summary: "Puts another policy in force while the instance runs, within what it was launched for",
        request: Some(of::<Policy>),
        query: &[],
        success: (200, Body::Json(of::<PolicyInForce>)),
        failures: &[400, 404, 409, 422],
        answer: api::replace_policy,
    },
    Route {
        method: Method::Get,
        path: "/v1/instances/{name}/events",
        id: "getEvents",
        summary: "What happened to an instance, one JSON object a line",
        request: None,
        query: &[(
            "follow",
            "true: go on with what happens, until it has ended",
        )],
        success: (200, Body::Lines(of::<Event>)),
        failures: &[400, 404],
        answer: api::events_of_one,
    },
    Route {
        method: Method::Get,
        path: "/v1/events",
        id: "followEvents",
        summary: "What happens to all instances from here on, one JSON object a line; each has the field \
                  `instance` as well",
        request: None,
        query: &[],
        success: (200, Body::Lines(of::<Event>)),
        failures: &[],
        answer: api::events_of_all,
    },
    Route {
        method: Method::Get,
        path: "/v1/recommendations",
        id: "getRecommendations",
        summary: "What their rules want of the instances whose policies only recommend",
        request: None,
        query: &[],
        success: (200, Body::Json(of::<Vec<Recommendation>>)),
        failures: &[],
        answer: api::recommendations,
    },
    Route {
        method: Method::Get,
        path: "/v1/openapi.json",
        id: "getOpenApi",
        summary: "This description",
        request: None,
        query: &[],
        success: (200, Body::Text("application/json")),
        failures: &[],
        answer: api::openapi,
    },
    Route {
        method: Method::Get,
        path: "/metrics",
        id: "getMetrics",
        summary: "Numbers of host and instances, in Prometheus' text format",
        request: None,
        query: &[],
        success: (200, Body::Text("text/plain; version=0.0.4")),
        failures: &[],
        answer: api::metrics,
    },
];

/// The name that a path has where the route has `{name}`; `Some(None)` for a route without.
pub(super) fn matched<'p>(route: &Route, path: &'p str) -> Option<Option<&'p str>> {
    let (mut wanted, mut given) = (route.path.split('/'), path.split('/'));
    let mut name = None;
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(name),
            (Some("{name}"), Some(part)) if !part.is_empty() => name = Some(part),
            (Some(wanted), Some(given)) if wanted == given => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_matched_whole() {
        let route = |id: &str| ROUTES.iter().find(|route| route.id == id).unwrap();
        let one = route("getInstance");
        assert_eq!(matched(one, "/v1/instances/web"), Some(Some("web")));
        for path in [
            "/v1/instances/",
            "/v1/instances",
            "/v1/instances/web/x",
            "/",
        ] {
            assert_eq!(matched(one, path), None, "{path}");
        }
        assert_eq!(matched(route("getHost"), "/v1/host"), Some(None));
    }

    #[test]
    fn no_operation_is_there_twice() {
        for (index, route) in ROUTES.iter().enumerate() {
            let twice = ROUTES.iter().skip(index + 1).any(|other| {
                other.id == route.id || (other.method == route.method && other.path == route.path)
            });
            assert!(!twice, "{}", route.id);
        }
    }
}
