//! Who may run at the same time: most scenarios share the host, those that look at its clocks and
//! counters have it alone.
//!
//! A thread that has the host alone may launch as many instances as it likes, and one that shares it
//! too: sharing never waits for others that share, so that nobody waits for itself.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct Host {
    sharing: usize,
    taken: bool,
}

static HOST: Mutex<Host> = Mutex::new(Host {
    sharing: 0,
    taken: false,
});
static FREED: Condvar = Condvar::new();

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

fn host() -> MutexGuard<'static, Host> {
    HOST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_while(holds: impl Fn(&Host) -> bool) -> MutexGuard<'static, Host> {
    FREED
        .wait_while(host(), |host| holds(host))
        .unwrap_or_else(PoisonError::into_inner)
}

/// The host, together with other scenarios; held by every instance.
#[derive(Debug)]
pub struct Shared(bool);

impl Shared {
    /// Waits until nobody has the host alone, but for this thread itself.
    pub fn take() -> Self {
        let counts = !ALONE.get();
        if counts {
            wait_while(|host| host.taken).sharing += 1;
        }
        Self(counts)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.0 {
            host().sharing -= 1;
            FREED.notify_all();
        }
    }
}

/// The host for this thread's instances alone.
pub struct Alone(PhantomData<*const ()>);

/// Waits until no other scenario has an instance, and keeps the host until the value is dropped.
pub fn alone() -> Alone {
    wait_while(|host| host.taken || host.sharing > 0).taken = true;
    ALONE.set(true);
    Alone(PhantomData)
}

impl Drop for Alone {
    fn drop(&mut self) {
        ALONE.set(false);
        host().taken = false;
        FREED.notify_all();
    }
}
