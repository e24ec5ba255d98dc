//! A driver without manners against the network interface: `cargo +nightly fuzz run net`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| concertina_vmm::virtio::net::fuzz::run(data));
