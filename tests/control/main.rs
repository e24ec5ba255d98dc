//! The control plane as a process: what a customer and an operator type, and `kill -9` in the middle of
//! launches. Hosts are simulated; they connect with the agent's own client.

mod cloud;
mod commands;
mod kills;
