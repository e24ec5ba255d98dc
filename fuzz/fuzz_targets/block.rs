//! A driver without manners against the disk: `cargo +nightly fuzz run block`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| concertina_vmm::virtio::block::fuzz::run(data));
