//! Bounds of bytes: of streams, of accounts, and what goes beyond them.

use std::collections::HashMap;
use std::sync::Arc;

use keepstep_core::hash::Hash;
use keepstep_core::head::StreamHead;
use keepstep_core::ingest::{Answer, Ingested, Plan, ingest};
use keepstep_core::rooms::{CONTROL_BYTES, RESERVED_BYTES_MAX, Rooms};

use crate::support::{Device, Draft, NOW_MS, Signed, new_stream, parse};

fn bounded(bytes_max: Option<u64>, stored_bytes: u64) -> Arc<StreamHead> {
    Arc::new(StreamHead { bytes_max, stored_bytes, ..StreamHead::clone(&new_stream(3, "notes")) })
}

fn size(event: &Signed) -> u64 {
    (event.header.len() + event.signature.len() + event.payload.as_ref().map_or(0, Vec::len)) as u64
}

fn run(device: &Device, events: &[Signed], head: &Arc<StreamHead>, rooms: Rooms) -> Ingested {
    let submissions = [device.submission(&parse(events))];
    let plan = Plan::new(&submissions);
    ingest(&submissions, &plan, vec![Some(Arc::clone(head))], rooms, NOW_MS).unwrap()
}

fn codes(ingested: &Ingested) -> Vec<&'static str> {
    let code = |answer: &Answer| match answer {
        Answer::New { .. } => "new",
        Answer::OutOfOrder { .. } => "out_of_order",
        Answer::Refused(error) => error.code(),
        _ => "other",
    };
    ingested.results[0].iter().map(code).collect()
}

fn room(bytes: u64) -> Rooms {
    Rooms { by_user: HashMap::from([(1, bytes.cast_signed())]), essential: false }
}

#[test]
fn a_stream_counts_header_signature_and_payload() {
    let device = Device::new(1);
    let events = device.series("notes", 1, &[0; 32], 3);
    let moved = &run(&device, &events, &bounded(None, 5), Rooms::default()).moved[0];
    assert_eq!(moved.new.stored_bytes, 5 + events.iter().map(size).sum::<u64>());
    assert_eq!(moved.old.stored_bytes, 5);
}

#[test]
fn a_dropped_payload_does_not_count() {
    let device = Device::new(1);
    let mut event = device.sign(&Draft::default());
    event.payload = None;
    let events = keepstep_core::event::Events::parse_stored(crate::support::publish(&[event.clone()]).into(), 1, 9);
    let submissions = [device.submission(&Arc::new(events.unwrap()))];
    let head = bounded(None, 0);
    let ingested = ingest(&submissions, &Plan::new(&submissions), vec![Some(head)], Rooms::default(), NOW_MS).unwrap();
    assert_eq!(ingested.moved[0].new.stored_bytes, (event.header.len() + 64) as u64);
}

#[test]
fn a_stream_takes_what_fits_its_bound_to_the_byte() {
    let device = Device::new(1);
    let events = device.series("notes", 1, &[0; 32], 2);
    let bytes = size(&events[0]);
    let full = run(&device, &events, &bounded(Some(100 + bytes), 100), Rooms::default());
    assert_eq!(codes(&full), ["new", "quota_exceeded"]);
    assert_eq!(full.moved[0].new.stored_bytes, 100 + bytes);
    let one_less = run(&device, &events, &bounded(Some(99 + bytes), 100), Rooms::default());
    assert_eq!(codes(&one_less), ["quota_exceeded", "out_of_order"]);
    assert!(one_less.moved.is_empty());
}

#[test]
fn an_account_takes_what_fits_its_room_to_the_byte_over_all_submissions() {
    let (first, second) = (Device::new(1), Device::new(2));
    let events = [&first, &second].map(|device| device.series("notes", 1, &[0; 32], 1));
    let submissions = [first.submission(&parse(&events[0])), second.submission(&parse(&events[1]))];
    for (bytes, taken) in [(size(&events[0][0]) + size(&events[1][0]), 2), (size(&events[0][0]), 1), (0, 0)] {
        let (plan, head) = (Plan::new(&submissions), bounded(None, 0));
        let ingested = ingest(&submissions, &plan, vec![Some(head)], room(bytes), NOW_MS).unwrap();
        let new = ingested.results.iter().filter(|answers| matches!(answers[0], Answer::New { .. })).count();
        assert_eq!(new, taken);
    }
    let (plan, head) = (Plan::new(&submissions), bounded(None, 0));
    let others = Rooms { by_user: HashMap::from([(2, 0)]), essential: false };
    assert_eq!(ingest(&submissions, &plan, vec![Some(head)], others, NOW_MS).unwrap().results.len(), 2);
}

#[test]
fn a_full_stream_is_freed_by_events_that_hold_nothing_of_the_application() {
    let device = Device::new(1);
    let policy = |prev: &Hash, n| {
        let payload = vec![0x95, 1, 0, 1, 0xc0, 0xc0];
        device.sign(&Draft { kind: 1, n, prev: prev[..16].to_vec(), payload, ..Draft::default() })
    };
    let event = policy(&[0; 32], 1);
    assert_eq!(codes(&run(&device, std::slice::from_ref(&event), &bounded(Some(0), 0), room(0))), ["new"]);
    let used_up = bounded(Some(0), CONTROL_BYTES);
    assert_eq!(codes(&run(&device, std::slice::from_ref(&event), &used_up, Rooms::default())), ["quota_exceeded"]);
    let below = Rooms { by_user: HashMap::from([(1, -CONTROL_BYTES.cast_signed())]), essential: false };
    assert_eq!(codes(&run(&device, std::slice::from_ref(&event), &bounded(None, 0), below)), ["quota_exceeded"]);
    // The policy lifts the bound for what follows it.
    let series = [event.clone(), device.series("notes", 2, &event.hash(), 1).remove(0)];
    assert_eq!(codes(&run(&device, &series, &bounded(Some(0), 0), Rooms::default())), ["new"]);
}

#[test]
fn devices_has_its_own_bound_that_only_what_is_essential_passes() {
    let device = Device::new(1);
    let event = device.sign(&Draft { kind: 5, stream: "$devices".into(), ..Draft::default() });
    let head = |stored_bytes| Arc::new(StreamHead { stored_bytes, ..StreamHead::clone(&new_stream(1, "$devices")) });
    let events = [event.clone()];
    let last = RESERVED_BYTES_MAX - size(&event);
    assert_eq!(codes(&run(&device, &events, &head(last), room(0))), ["new"]);
    assert_eq!(codes(&run(&device, &events, &head(last + 1), Rooms::default())), ["quota_exceeded"]);
    let essential = Rooms { essential: true, ..Rooms::default() };
    assert_eq!(codes(&run(&device, &events, &head(last + 1), essential)), ["new"]);
}
