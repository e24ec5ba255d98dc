//! The real server on loopback, with simulated hosts that connect with the agent's own client over
//! mutual TLS. What a customer sees is asserted through the API alone.

mod accounts;
mod bad_input;
mod certificates;
mod etcd;
mod hosts;
mod instances;
mod isolation;
mod openapi;
mod records;
mod restart;
mod support;
mod webhooks;
