//! Entries for fuzzing, behind the checksums, which random input never passes. Not part of the interface.

use std::path::Path;

use crate::codec::{self, Decoder, Sink, SiteCache, State, kind_of, tag};
use crate::event::{Record, ThreadId};
use crate::load::SegmentReader;
use crate::segment::Form;

/// Encodes records as bodies, each with its length (u16) in front.
pub fn encode_bodies(records: &[Record<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut state = State::at_segment_start(0);
    let mut sites = SiteCache::new();
    for record in records {
        if let Some(body) = encode(record, &mut state, &mut sites) {
            out.extend_from_slice(&(body.len() as u16).to_le_bytes());
            out.extend_from_slice(&body);
        }
    }
    out
}

fn encode(record: &Record<'_>, state: &mut State, sites: &mut SiteCache) -> Option<Vec<u8>> {
    let mut buf = vec![0; codec::bound(record)];
    let mut sink = Sink::new(&mut buf);
    codec::encode(record, state, sites, &mut sink);
    let len = sink.written()?;
    buf.truncate(len);
    Some(buf)
}

/// Decodes what `encode_bodies` makes, or anything else, as one segment. Whatever is a record must come
/// out the same after encoding and decoding it again. Returns how many there were.
///
/// # Panics
///
/// When it does not: that is what fuzzing looks for.
pub fn decode_bodies(mut data: &[u8]) -> usize {
    let mut decoder = Decoder::default();
    decoder.reset(0);
    let mut again = Decoder::default();
    again.reset(0);
    let mut state = State::at_segment_start(0);
    let mut sites = SiteCache::new();
    let mut count = 0;
    while let Some((len, rest)) = data.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
        let (body, rest) = rest.split_at(len);
        data = rest;
        let peeked = decoder.peek(body).map(|record| format!("{record:?}"));
        let Ok(record) = decoder.decode(body) else {
            assert!(peeked.is_err(), "peek and decode differ");
            continue;
        };
        assert_eq!(peeked, Ok(format!("{record:?}")), "peek and decode differ");
        let encoded = encode(&record, &mut state, &mut sites);
        let encoded = encoded.unwrap_or_else(|| panic!("the bound is too small for {record:?}"));
        let decoded = again.decode(&encoded);
        assert_eq!(
            decoded.as_ref(),
            Ok(&record),
            "encoding again changed the record"
        );
        let name = kind_of(body).and_then(|kind| tag::NAMES.get(usize::from(kind)).copied());
        let shown = record.event.to_string();
        assert!(
            name.is_some_and(|name| shown.starts_with(name)),
            "{name:?} shown as {shown}"
        );
        count += 1;
    }
    count
}

/// Reads a file as a segment, in both forms. Returns how many bodies it has.
pub fn read_segment(data: &[u8]) -> usize {
    let mut count = 0;
    for form in [Form::Raw, Form::Zst] {
        let source = Box::new(data.to_vec());
        let opened = SegmentReader::open(source, Path::new("fuzz"), ThreadId(1), 0, form);
        let Ok(mut segment) = opened else { continue };
        while let Ok(Some(_)) = segment.load() {
            segment.advance();
            count += 1;
        }
    }
    count
}

/// Reads a text as `meta.json` and as `end.json`.
pub fn read_meta(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = crate::meta::version_of(text);
    let _ = crate::meta::from_text::<crate::Meta>(text, Path::new("fuzz"));
    let _ = crate::meta::from_text::<crate::End>(text, Path::new("fuzz"));
}
