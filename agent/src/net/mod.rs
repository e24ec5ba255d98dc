//! The host's side of an instance's network interfaces: tap interfaces, and `passt` for those who
//! have no root. Both are opened here and inherited by the vmm, which needs no right of its own.
//!
//! A tap interface is held for the whole life of the instance, so that it keeps what the host's
//! operator has given it (addresses, a bridge) when the guest restarts. `passt` lives as long as one
//! life of the vmm.

mod passt;
mod tap;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use concertina_api::net::{Forward, MAX_NETS, NetKind, NetLink, NetSpec, NetWish};

use crate::cgroup::InstanceGroup;
use crate::launch::LaunchError;
pub(crate) use passt::Passt as NetProgram;
pub use passt::{PROGRAM as PASST, find as find_passt};
pub use tap::DEVICE as TUN_DEVICE;

/// Why a network interface cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// What was asked for is wrong on any host.
    #[error("{0}")]
    Request(String),
    /// This host lacks something, or refuses.
    #[error("{0}")]
    Host(String),
    /// A system call failed where none should.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl NetError {
    /// Whether the request is at fault and not this host.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Request(_))
    }
}

/// Checks what can be checked before anything is made.
pub fn check(wishes: &[NetWish]) -> Result<(), NetError> {
    if wishes.len() > MAX_NETS {
        return Err(NetError::Request(format!(
            "{} network interfaces are not possible: at most {MAX_NETS} are",
            wishes.len()
        )));
    }
    let mut forwards: Vec<Forward> = Vec::new();
    for (index, wish) in wishes.iter().enumerate() {
        let before = wishes.get(..index).unwrap_or_default();
        if let Some(mac) = wish
            .mac
            .filter(|mac| before.iter().any(|w| w.mac == Some(*mac)))
        {
            return Err(NetError::Request(format!(
                "MAC address {mac} is given to two network interfaces"
            )));
        }
        match &wish.kind {
            NetKind::Tap(Some(name)) if before.iter().any(|w| w.kind == wish.kind) => {
                return Err(NetError::Request(format!(
                    "Tap interface '{name}' is given to two network interfaces"
                )));
            }
            NetKind::Tap(_) => {}
            NetKind::User(more) => {
                passt::check_installed()?;
                for forward in more {
                    if forwards.iter().any(|other| other.host == forward.host) {
                        return Err(NetError::Request(format!(
                            "Port {} of the host is forwarded twice",
                            forward.host
                        )));
                    }
                    forwards.push(*forward);
                }
            }
        }
    }
    Ok(())
}

/// Numbers of the interfaces in which the guest should ask for an address.
pub fn with_dhcp(wishes: &[NetWish]) -> impl Iterator<Item = usize> {
    let user =
        |(index, wish): (usize, &NetWish)| matches!(wish.kind, NetKind::User(_)).then_some(index);
    wishes.iter().enumerate().filter_map(user)
}

/// The interfaces of one instance.
#[derive(Debug)]
pub struct Networks(Vec<Network>);

#[derive(Debug)]
struct Network {
    wish: NetWish,
    /// The tap interface; absent: through `passt`.
    tap: Option<OwnedFd>,
}

impl Networks {
    /// Opens tap interfaces, and makes those that do not exist; they go when this is dropped.
    pub fn open(wishes: &[NetWish]) -> Result<Self, NetError> {
        let open = |wish: &NetWish| {
            let tap = match &wish.kind {
                NetKind::Tap(name) => Some(tap::open(name.as_deref())?),
                NetKind::User(_) => None,
            };
            Ok(Network {
                wish: wish.clone(),
                tap,
            })
        };
        wishes.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Takes over the interfaces of a vmm that is at work: its tap interfaces stay when it ends, as
    /// they would have with whoever opened them. `specs` is what that vmm was told.
    ///
    /// # Errors
    /// The descriptors of that process cannot be had.
    pub(crate) fn take_over(
        wishes: &[NetWish],
        specs: &[NetSpec],
        vmm: BorrowedFd<'_>,
    ) -> Result<Self, NetError> {
        let take = |(wish, spec): (&NetWish, &NetSpec)| {
            let tap = match spec.link {
                NetLink::Tap => Some(copy_of(vmm, spec.fd)?),
                NetLink::Stream => None,
            };
            Ok(Network {
                wish: wish.clone(),
                tap,
            })
        };
        let taken = wishes.iter().zip(specs).map(take);
        taken.collect::<Result<_, _>>().map(Self)
    }

    /// Starts what a life of the vmm needs, as a part of the instance that has this group.
    pub(crate) fn begin_life(&self, group: &InstanceGroup) -> Result<NetLife<'_>, LaunchError> {
        let mut life = NetLife {
            networks: self,
            sockets: Vec::new(),
            programs: Vec::new(),
        };
        for (index, network) in self.0.iter().enumerate() {
            if let NetKind::User(forwards) = &network.wish.kind {
                let procs = group.open_others_procs()?;
                let (program, socket) = NetProgram::start(index, forwards, procs)?;
                life.programs.push(program);
                life.sockets.push(socket);
            }
        }
        for program in &mut life.programs {
            program.wait_until_ready()?;
        }
        Ok(life)
    }
}

/// A copy of another process's descriptor (`pidfd_getfd(2)`, Linux 5.6).
fn copy_of(process: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd, NetError> {
    // SAFETY: pidfd_getfd(2) takes three integers and gives a descriptor or -1.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    match i32::try_from(copy) {
        // SAFETY: the kernel gave this descriptor to us alone just now.
        Ok(copy @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
        _ => Err(NetError::System {
            what: format!("Descriptor {fd} of the VM's tap interface cannot be taken over"),
            source: io::Error::last_os_error(),
        }),
    }
}

/// What one life of the vmm needs of the networks.
pub(crate) struct NetLife<'a> {
    networks: &'a Networks,
    /// The vmm's ends, in the order of the interfaces that have one.
    sockets: Vec<OwnedFd>,
    programs: Vec<NetProgram>,
}

impl NetLife<'_> {
    /// The descriptors that the vmm inherits, in the order of its interfaces.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut sockets = self.sockets.iter();
        let mut descriptors = Vec::new();
        for network in &self.networks.0 {
            descriptors.extend(
                network
                    .tap
                    .as_ref()
                    .or_else(|| sockets.next())
                    .map(AsFd::as_fd),
            );
        }
        descriptors
    }

    /// What the vmm is told.
    pub fn specs(&self) -> Vec<NetSpec> {
        let spec = |(network, fd): (&Network, BorrowedFd<'_>)| NetSpec {
            link: match network.tap {
                Some(_) => NetLink::Tap,
                None => NetLink::Stream,
            },
            fd: fd.as_raw_fd(),
            mac: network.wish.mac,
            mtu: network.wish.mtu,
            rates: network.wish.rates,
        };
        self.networks
            .0
            .iter()
            .zip(self.descriptors())
            .map(spec)
            .collect()
    }

    /// The vmm has inherited its ends; ours are closed, so that each side sees the other's end. The
    /// programs are kept in `place` as long as what is returned.
    pub fn handed_over(self, place: &NetPrograms) -> KeptPrograms<'_> {
        *place.lock() = self.programs;
        KeptPrograms(place)
    }
}

/// The programs of the present life of the vmm.
#[derive(Debug, Default)]
pub(crate) struct NetPrograms(Mutex<Vec<NetProgram>>);

impl NetPrograms {
    fn lock(&self) -> MutexGuard<'_, Vec<NetProgram>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// They go on without us.
    pub fn leave(&self) {
        for program in self.lock().drain(..) {
            program.leave();
        }
    }

    /// Nothing is kept yet: the programs of a life that was taken over belong to nobody.
    pub fn none(&self) -> KeptPrograms<'_> {
        KeptPrograms(self)
    }

    /// Those that have ended since the last call: the number of the interface, and last words.
    pub fn ended(&self) -> Vec<(usize, String)> {
        let mut ended = Vec::new();
        self.lock().retain_mut(|program| match program.ended() {
            Some(words) => {
                ended.push((program.index(), words));
                false
            }
            None => true,
        });
        ended
    }
}

/// Ends the programs when it is dropped.
pub(crate) struct KeptPrograms<'a>(&'a NetPrograms);

impl Drop for KeptPrograms<'_> {
    fn drop(&mut self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(texts: &[&str]) -> Result<(), String> {
        let wishes: Vec<NetWish> = texts.iter().map(|text| text.parse().unwrap()).collect();
        check(&wishes).map_err(|error| {
            assert!(error.is_usage(), "{error}");
            error.to_string()
        })
    }

    #[test]
    fn what_two_interfaces_cannot_share_is_refused() {
        assert_eq!(verdict(&["tap=a", "tap=b", "tap", "tap"]), Ok(()));
        for (texts, named) in [
            (&["tap=a", "tap=a"][..], "'a'"),
            (
                &["tap,mac=02:00:00:00:00:01", "tap,mac=02:00:00:00:00:01"],
                "02:00:00:00:00:01",
            ),
            (&["tap"; 9], "at most 8"),
        ] {
            let error = verdict(texts).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn only_user_networks_ask_for_an_address() {
        let wishes: Vec<NetWish> = ["tap", "user", "tap=x", "user"]
            .map(|text| text.parse().unwrap())
            .into();
        assert_eq!(with_dhcp(&wishes).collect::<Vec<_>>(), [1, 3]);
    }
}
