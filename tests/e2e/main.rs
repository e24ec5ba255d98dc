//! End-to-end scenarios: the `concertina` command, a real KVM, unmodified Debian kernels, one topic
//! a file. `scripts/test` runs them, in the nested host where the machine has no hardware KVM; run
//! by hand on a host without one, they fail and say so.
//!
//! Every scenario launches its own instance in its own state folder, and looks at the result from
//! three sides: what the command says, what the guest sees, and what the host's files show.

mod support;

mod agent;
mod agent_adversity;
mod agent_death;
mod bad_input;
mod balloon;
mod boot;
mod channel;
mod cloud;
mod disk;
mod image;
mod lifecycle;
mod memory;
mod net;
mod permissions;
mod quota;
mod systemd;
mod thresholds;
mod top;
mod vcpu;
mod vsock;
