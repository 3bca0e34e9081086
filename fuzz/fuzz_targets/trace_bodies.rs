//! Any bytes as records behind the checksums.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    crewind_trace::fuzz::decode_bodies(data);
});
