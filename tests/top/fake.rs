//! Instances as a state folder shows them, with this process as their supervisor.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use concertina_agent::state_dir::{Ending, InstancePaths, InstanceRecord, ProcessId, StateDir};
use concertina_api::instance::{ExitReason, InstanceState};
use concertina_http::{Method, Request, Response, Server, Stopper};
use serde_json::{Value, json};

use super::LIMIT;

/// A state folder.
pub struct Host {
    folder: tempfile::TempDir,
}

/// What an instance says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Play {
    load: f64,
    cpus: u32,
    hangs: bool,
    slow_resize: bool,
}

impl Play {
    /// So much load in percent on so many of 4 CPUs.
    pub fn of(load: f64, cpus: u32) -> Self {
        Self {
            load,
            cpus,
            hangs: false,
            slow_resize: false,
        }
    }

    /// Takes connections, and says nothing.
    pub fn that_hangs(self) -> Self {
        Self {
            hangs: true,
            ..self
        }
    }

    /// Answers a resize only when it is told to.
    pub fn slow_to_resize(self) -> Self {
        Self {
            slow_resize: true,
            ..self
        }
    }

    fn status(&self, name: &str) -> Value {
        let mib = |mib: u64| mib << 20;
        json!({
            "name": name, "state": "running", "uptime_ms": 34_000, "agent_pid": 1, "vmm_pid": null,
            "cpus": {"min": 1.0, "max": 4.0, "target": self.cpus, "online": self.cpus, "quota": "max"},
            "memory": {"min": mib(256), "max": mib(1024), "target": mib(512), "plugged": mib(512),
                "balloon": 0, "guest_total": null, "guest_available": null, "host_resident": mib(90)},
            "last_resize": null,
            "thresholds": [{"rule": "cpu > 75% for 5s: +1 cpu", "state": "ok", "last_value": self.load,
                "window": {"breaching": 0, "need": 5, "of": 5, "period_ms": 1000}}],
            "observed": {"cpu": self.load, "cpu.pressure": 3.0, "memory.pressure": 0.0},
        })
    }
}

impl Host {
    /// Without instances.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the state");
        Self { folder }
    }

    /// The state folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// An instance that runs.
    pub fn launch(&self, name: &str, play: Play) -> Fake {
        let state = StateDir::new(self.folder().to_owned());
        let paths = state.paths(name).expect("a good name");
        std::fs::create_dir_all(&paths.dir).expect("its folder");
        let stage = Arc::new(Stage {
            name: name.to_owned(),
            play: Mutex::new(play),
            wishes: Mutex::default(),
            finished: Mutex::new(false),
            finish: Condvar::new(),
        });
        let (stopper, listener) = if play.hangs {
            let listener = UnixListener::bind(&paths.agent_socket).expect("its socket");
            (None, Some(listener))
        } else {
            (Some(serve(&paths, &stage)), None)
        };
        record(&paths, name, None);
        Fake {
            paths,
            stage,
            stopper,
            _listener: listener,
        }
    }
}

fn serve(paths: &InstancePaths, stage: &Arc<Stage>) -> Stopper {
    let server = Server::bind(&paths.agent_socket).expect("its socket");
    let stopper = server.stopper();
    let stage = Arc::clone(stage);
    thread::spawn(move || server.serve(Arc::new(move |request: &Request| stage.answer(request))));
    stopper
}

fn record(paths: &InstancePaths, name: &str, ending: Option<Ending>) {
    let record = InstanceRecord {
        ending,
        ..InstanceRecord::new(name, ProcessId::of_self())
    };
    record.write(&paths.record).expect("its record");
}

/// An instance that is played.
pub struct Fake {
    paths: InstancePaths,
    stage: Arc<Stage>,
    stopper: Option<Stopper>,
    _listener: Option<UnixListener>,
}

struct Stage {
    name: String,
    play: Mutex<Play>,
    wishes: Mutex<Vec<Value>>,
    finished: Mutex<bool>,
    finish: Condvar,
}

impl Stage {
    fn answer(&self, request: &Request) -> Response {
        let play = *self.play.lock().unwrap();
        match (request.path.as_str(), request.method) {
            ("/v1/instance", Method::Get) => Response::json(200, &play.status(&self.name)),
            ("/v1/instance/resize", Method::Put) => {
                let wish: Value = match request.json() {
                    Ok(wish) => wish,
                    Err(response) => return response,
                };
                self.wishes.lock().unwrap().push(wish.clone());
                if play.slow_resize {
                    let finished = self.finished.lock().unwrap();
                    drop(
                        self.finish
                            .wait_timeout_while(finished, LIMIT, |finished| !*finished),
                    );
                }
                let report =
                    json!({"outcome": "applied", "asked": wish, "got": wish, "timeline_ms": {}});
                Response::json(200, &report)
            }
            _ => Response::not_found(request),
        }
    }
}

impl Fake {
    /// Says something else from here on.
    pub fn play(&self, play: Play) {
        *self.stage.play.lock().unwrap() = play;
    }

    /// Sizes that it was asked for.
    pub fn wishes(&self) -> Vec<Value> {
        self.stage.wishes.lock().unwrap().clone()
    }

    /// Lets the resize that it was asked for end.
    pub fn finish_resize(&self) {
        *self.stage.finished.lock().unwrap() = true;
        self.stage.finish.notify_all();
    }

    /// Something happens to it.
    pub fn happens(&self, event: &Value) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.paths.events)
            .expect("its events");
        file.write_all(format!("{event}\n").as_bytes())
            .expect("its events");
    }

    /// It ends well.
    pub fn ends(&self, reason: &str) {
        let ending = Ending {
            state: InstanceState::Stopped,
            status: 0,
            reason: reason.to_owned(),
            exit_reason: ExitReason::Stopped,
            time: "2026-11-22T10:00:03.000Z".to_owned(),
        };
        record(&self.paths, &self.stage.name, Some(ending));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.finish_resize();
        if let Some(stopper) = &self.stopper {
            stopper.stop();
        }
    }
}
