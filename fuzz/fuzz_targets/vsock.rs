//! A driver without manners against the sockets: `cargo +nightly fuzz run vsock`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| concertina_vmm::virtio::vsock::fuzz::run(data));
