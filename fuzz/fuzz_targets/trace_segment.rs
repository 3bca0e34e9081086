//! Any bytes as a segment file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    crewind_trace::fuzz::read_segment(data);
});
