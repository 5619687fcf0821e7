//! Parsing: every part of a publish that is not as documented is refused with its code.

use std::sync::Arc;

use keepstep_core::event::{Events, TRACE_BYTES_MAX};
use keepstep_core::header::{Header, TTL_S_MAX};
use keepstep_core::ingest::{Answer, Plan, ingest};
use keepstep_core::rooms::Rooms;
use proptest::prelude::*;

use crate::support::{Device, Draft, NOW_MS, Signed, cases, id_at, new_stream, parse, publish, write_position};

fn code_of(draft: &Draft) -> &'static str {
    code_of_event(Device::new(1).sign(draft))
}

fn code_of_event(event: Signed) -> &'static str {
    parse(&[event]).parsed(0).err().map_or("", |error| error.code())
}

fn edited(edit: impl FnOnce(&mut Draft)) -> &'static str {
    let mut draft = Draft::default();
    edit(&mut draft);
    code_of(&draft)
}

#[test]
fn a_good_event_is_read_as_it_was_written() {
    let draft = Draft { ttl_s: Some(60), n: 9, prev: vec![5; 16], seen: Some((3, [3; 32])), ..Draft::default() };
    let mut event = Device::new(1).sign(&draft);
    event.trace = Some(b"trace".to_vec());
    let events = parse(&[event.clone()]);
    let parsed = events.parsed(0).unwrap();
    assert_eq!((parsed.kind.number(), parsed.n, parsed.ttl_s), (0, 9, Some(60)));
    assert_eq!((parsed.id.to_vec(), parsed.id_time_ms, parsed.hlc), (id_at(NOW_MS), NOW_MS, NOW_MS << 16));
    assert_eq!((parsed.prev, parsed.seen, parsed.devices_seen), ([5; 16], (3, [3; 32]), (4, [4; 32])));
    assert_eq!(parsed.hash, event.hash());
    let bytes = events.bytes(0);
    assert_eq!((bytes.header, bytes.signature), (event.header.as_slice(), event.signature.as_slice()));
    assert_eq!((bytes.payload, bytes.trace), (Some(b"sealed".as_slice()), Some(b"trace".as_slice())));
    assert_eq!((&*events.streams()[0], events.payload_bytes(), events.len()), ("notes", 6, 1));
    assert!(!events.is_empty());
}

#[test]
fn optional_fields_have_their_documented_forms() {
    let mut position = Vec::new();
    write_position(&mut position, 7, &[1; 32]);
    for base in [vec![0xc0], vec![5], position] {
        assert_eq!(edited(|draft| draft.base = base), "");
    }
    assert_eq!(edited(|draft| draft.key = Some(vec![1; 16])), "");
    assert_eq!(edited(|draft| draft.ttl_s = Some(TTL_S_MAX)), "");
}

#[test]
fn fields_outside_their_documented_form_are_malformed() {
    assert_eq!(edited(|draft| draft.n = 0), "malformed");
    assert_eq!(edited(|draft| draft.prev = vec![0; 15]), "malformed");
    assert_eq!(edited(|draft| draft.base = vec![0x91, 5]), "malformed");
    assert_eq!(edited(|draft| draft.base = vec![0xc2]), "malformed");
    assert_eq!(edited(|draft| draft.key = Some(vec![1; 15])), "malformed");
    assert_eq!(edited(|draft| draft.ttl_s = Some(0)), "malformed");
    assert_eq!(edited(|draft| draft.ttl_s = Some(TTL_S_MAX + 1)), "malformed");
    assert_eq!(edited(|draft| draft.id[6] = 0x40), "malformed");
    assert_eq!(edited(|draft| draft.id[8] = 0xc0), "malformed");
    assert_eq!(edited(|draft| draft.id.truncate(15)), "malformed");
    let names = [String::new(), "x".repeat(129), "a b".into(), "ü".into()];
    for name in names {
        assert_eq!(edited(|draft| draft.stream = name), "malformed");
    }
    assert_eq!(edited(|draft| draft.stream = "x".repeat(128)), "");
}

#[test]
fn kinds_and_versions_of_later_are_unsupported() {
    for kind in [7, 1000] {
        assert_eq!(edited(|draft| draft.kind = kind), "unsupported");
    }
    assert_eq!(edited(|draft| draft.version = 2), "unsupported");
}

#[test]
fn each_kind_goes_into_its_streams_only() {
    let cases = [
        (0, "$devices", "malformed"),
        (0, "$keys", "malformed"),
        (0, "$inbox/x", "unknown_stream"),
        (0, "$inbox/0123456789abcdef0123456789abcdef", ""),
        (2, "notes", ""),
        (3, "notes", ""),
        (4, "notes", ""),
        (4, "$keys", "malformed"),
        (4, "$inbox/0123456789abcdef0123456789abcdef", "malformed"),
        (0, "$inbox/0123456789abcdef0123456789abcdeF", "unknown_stream"),
        (5, "$devices", ""),
        (5, "$keys", "malformed"),
        (5, "notes", "malformed"),
        (6, "$keys", ""),
        (6, "$devices", "malformed"),
        (6, "$other", "unknown_stream"),
    ];
    for (kind, stream, code) in cases {
        let draft = Draft { kind, stream: stream.into(), ..Draft::default() };
        assert_eq!(code_of(&draft), code, "{kind} {stream}");
        if code.is_empty() {
            assert_eq!(code_of(&Draft { ttl_s: Some(60), ..draft }), "malformed");
        }
    }
}

#[test]
fn a_header_has_fourteen_fields_and_nothing_after_them() {
    let header = Draft::default().header();
    Header::decode(&header).unwrap();
    let mut long = header.clone();
    long.push(0xc0);
    let mut other_count = header.clone();
    other_count[0] = 0x9d;
    for bytes in [long, other_count, header[..header.len() - 1].to_vec(), vec![0x90], Vec::new()] {
        assert_eq!(Header::decode(&bytes).unwrap_err().code(), "malformed");
    }
}

#[test]
fn payload_signature_and_trace_are_checked() {
    let good = Device::new(1).sign(&Draft::default());
    assert_eq!(code_of_event(Signed { payload: None, ..good.clone() }), "malformed");
    assert_eq!(code_of_event(Signed { payload: Some(b"forged".to_vec()), ..good.clone() }), "malformed");
    assert_eq!(code_of_event(Signed { payload: Some(b"other length".to_vec()), ..good.clone() }), "malformed");
    assert_eq!(code_of_event(Signed { signature: vec![0; 63], ..good.clone() }), "malformed");
    let trace = |length| Signed { trace: Some(vec![0; length]), ..good.clone() };
    assert_eq!(code_of_event(trace(TRACE_BYTES_MAX)), "");
    assert_eq!(code_of_event(trace(TRACE_BYTES_MAX + 1)), "too_large");
    let parsed = Events::parse(publish(&[good]).into(), 1, 5).unwrap();
    assert_eq!(parsed.parsed(0).unwrap_err().code(), "too_large");
}

#[test]
fn a_message_that_is_not_a_list_of_events_is_refused_whole() {
    let good = Device::new(1).sign(&Draft::default());
    let raw = publish(&[good.clone(), good]);
    let parse =
        |raw: &[u8], events_max| Events::parse(raw.into(), events_max, 1000).map(|_| ()).map_err(|error| error.code());
    assert_eq!(parse(&raw, 2), Ok(()));
    assert_eq!(parse(&raw, 1), Err("too_large"));
    assert_eq!(parse(&[0x90], 2), Err("malformed"));
    assert_eq!(parse(&[&raw[..], &[0xc0]].concat(), 2), Err("malformed"));
    assert_eq!(parse(&raw[..raw.len() - 1], 2), Err("malformed"));
    assert_eq!(parse(&[0x91, 0x93, 0xc4, 0, 0xc4, 0, 0xc0], 2), Err("malformed"));
    assert_eq!(parse(&[0xdd, 0xff, 0xff, 0xff, 0xff], usize::MAX), Err("malformed"));
}

#[test]
fn streams_and_kinds_of_the_well_formed_are_listed_once() {
    let device = Device::new(1);
    let named = |kind, stream: &str, n| device.sign(&Draft { kind, stream: stream.into(), n, ..Draft::default() });
    let events = parse(&[
        named(6, "$keys", 1),
        named(0, "b", 1),
        named(0, "a", 1),
        named(0, "b", 1),
        named(0, "c", 0),
        named(9, "d", 1),
    ]);
    let listed: Vec<&str> = events.streams().iter().map(|name| &**name).collect();
    assert_eq!(listed, ["$keys", "b", "a"]);
    assert_eq!(events.kinds().iter().map(|kind| kind.number()).collect::<Vec<_>>(), [0, 6]);
}

#[test]
fn splitting_keeps_every_event_with_its_stream_and_verdict() {
    let device = Device::new(1);
    let other = Device::new(2);
    let mut signed = device.series("a", 1, &[0; 32], 1);
    signed.extend(device.series("b", 1, &[0; 32], 1));
    signed.push(device.sign(&Draft { n: 0, ..Draft::default() }));
    let events = parse(&signed);
    events.keep_verdict(1, &device.signer, true);
    events.keep_verdict(1, &other.signer, false);
    let split = events.split();
    assert_eq!(split.len(), 3);
    assert_eq!((&*split[0].streams()[0], &*split[1].streams()[0], split[2].streams().len()), ("a", "b", 0));
    assert_eq!(split[1].parsed(0).unwrap().hash, signed[1].hash());
    assert_eq!(split[1].bytes(0).payload, signed[1].payload.as_deref());
    assert_eq!(split[2].parsed(0).unwrap_err().code(), "malformed");
    assert_eq!(split[0].verdict(0, &device.signer), None);
    assert_eq!(split[1].verdict(0, &device.signer), Some(true));
    assert_eq!(split[1].verdict(0, &other.signer), None);
    let same = Arc::new(keepstep_core::event::Signer {
        user_key: device.signer.user_key,
        device_id: device.signer.device_id,
        device_key: device.signer.device_key.clone(),
    });
    assert_eq!(split[1].verdict(0, &same), Some(true));
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn no_bytes_make_parsing_panic(raw in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(events) = Events::parse(raw.into(), 16, 100) {
            prop_assert!(!events.is_empty());
        }
    }

    #[test]
    fn a_changed_byte_never_makes_another_good_event(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let good = Device::new(1).sign(&Draft::default());
        let mut raw = publish(std::slice::from_ref(&good));
        let at = at.index(raw.len());
        prop_assume!(raw[at] != to);
        raw[at] = to;
        // Whatever still parses has another hash, so its signature or its place in the chain gives it away.
        if let Ok(events) = Events::parse(raw.into(), 16, 100)
            && let Ok(parsed) = events.parsed(0)
        {
            prop_assert_ne!(parsed.hash, good.hash());
        }
    }
}

#[test]
fn a_stored_event_may_have_lost_its_payload() {
    let device = Device::new(1);
    for kind in [0, 1, 2] {
        let ttl_s = (kind == 0).then_some(60);
        let gone = Signed { payload: None, ..device.sign(&Draft { kind, ttl_s, ..Draft::default() }) };
        let raw = publish(&[gone]);
        assert_eq!(parse_raw(&raw).parsed(0).unwrap_err().code(), "malformed");
        let stored = Events::parse_stored(raw.into(), 1, 100).unwrap();
        assert_eq!(stored.parsed(0).unwrap().rules, None);
        assert_eq!((stored.bytes(0).payload, stored.payload_bytes()), (None, 0));
        let submissions = [device.submission(&Arc::new(stored))];
        let plan = Plan::new(&submissions);
        let ingested =
            ingest(&submissions, &plan, vec![Some(new_stream(3, "notes"))], Rooms::default(), NOW_MS).unwrap();
        assert!(matches!(ingested.results[0][..], [Answer::New { count: 1, .. }]));
        assert_eq!(ingested.moved[0].run.expires_at_ms, None);
    }
    let mut other = device.sign(&Draft::default());
    other.payload = Some(b"another".to_vec());
    let stored = Events::parse_stored(publish(&[other]).into(), 1, 100).unwrap();
    assert_eq!(stored.parsed(0).unwrap_err().code(), "malformed");
}

fn parse_raw(raw: &[u8]) -> Events {
    Events::parse(raw.into(), 1, 100).unwrap()
}
