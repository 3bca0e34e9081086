//! Any bytes as meta.json and end.json.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    crewind_trace::fuzz::read_meta(data);
});
