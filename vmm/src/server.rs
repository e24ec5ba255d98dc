//! The VM's API on its unix socket; bodies and routes are described in [`concertina_api::vm`].

use std::sync::Arc;
use std::time::Duration;

use concertina_api::vm::{Publishing, VmResize};
use concertina_http::{Method, Request, Response, Server, Stopper};

use crate::control::{Control, chain};
use crate::error::VmmError;

/// Statistics younger than this are not asked for again.
const STATISTICS_MAX_AGE: Duration = Duration::from_millis(50);
/// How long the guest's driver may take to answer.
const STATISTICS_TIMEOUT: Duration = Duration::from_millis(250);

/// Serves in a thread of its own, until the stopper is used.
///
/// # Errors
/// The socket or the thread cannot be made.
pub fn serve(control: Arc<Control>, server: Server) -> Result<Stopper, VmmError> {
    let stopper = server.stopper();
    std::thread::Builder::new()
        .name("api".into())
        .stack_size(256 << 10)
        .spawn(move || {
            let handler = move |request: &Request| answer(&control, request);
            if let Err(error) = server.serve(Arc::new(handler)) {
                eprintln!("The API is gone: {}", chain(&error));
            }
        })
        .map_err(VmmError::host("Thread of the API cannot be made"))?;
    Ok(stopper)
}

fn answer(control: &Control, request: &Request) -> Response {
    let done = || Response::empty(204);
    match (request.path.as_str(), &request.method) {
        ("/v1/vm", Method::Get) => Response::json(200, &control.describe()),
        ("/v1/vm/disks", Method::Get) => Response::json(200, &control.disks()),
        ("/v1/vm/nets", Method::Get) => Response::json(200, &control.nets()),
        ("/v1/vm/resize", Method::Put) => match request.json::<VmResize>() {
            Ok(wish) => Response::json(200, &control.resize(&wish)),
            Err(response) => response,
        },
        ("/v1/vm/balloon/statistics", Method::Get) => {
            let statistics = control.balloon_statistics(STATISTICS_MAX_AGE, STATISTICS_TIMEOUT);
            Response::json(200, &statistics)
        }
        ("/v1/vm/counters", Method::Put) => match request.json::<Publishing>() {
            Ok(wish) => match control.publish(&wish) {
                Ok(()) => done(),
                Err(why) => Response::problem(400, why),
            },
            Err(response) => response,
        },
        ("/v1/vm/pause", Method::Put) => {
            control.pause();
            done()
        }
        ("/v1/vm/resume", Method::Put) => {
            control.resume();
            done()
        }
        ("/v1/vm/power-button", Method::Put) => {
            control.power_button();
            done()
        }
        ("/v1/vm/stop", Method::Put) => {
            control.stop();
            done()
        }
        (
            "/v1/vm"
            | "/v1/vm/disks"
            | "/v1/vm/resize"
            | "/v1/vm/balloon/statistics"
            | "/v1/vm/counters"
            | "/v1/vm/pause"
            | "/v1/vm/resume"
            | "/v1/vm/power-button"
            | "/v1/vm/stop",
            _,
        ) => Response::problem(
            405,
            "This method is not allowed here: read with GET, act with PUT",
        ),
        (path, _) => Response::problem(404, format!("There is no '{path}' here; start at /v1/vm")),
    }
}
