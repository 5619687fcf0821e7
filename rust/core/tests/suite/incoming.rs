//! A device's records: what they are to the server, in their order, and where they end.

use std::sync::Arc;

use keepstep_core::aead::RecordKey;
use keepstep_core::incoming::{Author, Incoming, MESSAGE_BYTES_MAX, RecordReader};
use keepstep_core::msgpack::{LenientReader, NESTED_MAX, write_integer};
use proptest::prelude::*;
use zeroize::Zeroizing;

use crate::support::{Device, Draft, cases, publish};

const REKEY: [u8; 2] = [0x91, 26];
const PING: [u8; 3] = [0x92, 25, 1];

fn key() -> RecordKey {
    RecordKey::new(2, Zeroizing::new([7; 32]), b"th3".to_vec()).unwrap()
}

fn reader(records_max: u64) -> RecordReader {
    let author = Author {
        user_pk: 1,
        device_pk: 2,
        signer: Arc::clone(&Device::new(2).signer),
        capabilities: 7,
        events_max: 4,
        payload_bytes_max: 1000,
    };
    RecordReader::new(author, records_max)
}

/// A publish of one good event.
fn publish_of(rid: u64) -> Vec<u8> {
    let mut message = vec![0x93, 16];
    write_integer(&mut message, rid);
    message.extend_from_slice(&publish(&[Device::new(2).sign(&Draft::default())]));
    message
}

/// What each record was, in a word.
fn words(incoming: &[Incoming]) -> Vec<String> {
    let word = |each: &Incoming| match each {
        Incoming::Publish(rid, Ok(submission)) => format!("publish {rid} of {}", submission.events.len()),
        Incoming::Publish(rid, Err(error)) => format!("publish {rid} {}", error.code()),
        Incoming::Message(message) => format!("message {}", message[1]),
        Incoming::Fault(error) => error.code().into(),
    };
    incoming.iter().map(word).collect()
}

/// What messages are that a device seals one after the other, rekeying where it says so.
fn read(messages: &[&[u8]], records_max: u64) -> Vec<String> {
    let (mut sealer, mut opener, mut reader) = (key(), key(), reader(records_max));
    let read = |message: &&[u8]| {
        let record = sealer.seal(message).unwrap();
        if *message == REKEY.as_slice() {
            sealer.rekey().unwrap();
        }
        reader.read(&mut opener, record)
    };
    words(&messages.iter().filter_map(read).collect::<Vec<_>>())
}

#[test]
fn records_are_read_in_order_over_rekeys() {
    let messages: [&[u8]; 5] = [&publish_of(300), &PING, &REKEY, &[0x93, 16, 5, 0x90], &PING];
    assert_eq!(
        read(&messages, 4),
        ["publish 300 of 1", "message 25", "message 26", "publish 5 malformed", "message 25"]
    );
}

#[test]
fn a_secret_has_so_many_records_and_the_last_is_its_rekey() {
    assert_eq!(
        read(&[&PING, &REKEY, &PING, &PING, &PING], 2),
        ["message 25", "message 26", "message 25", "unexpected"]
    );
}

#[test]
fn nothing_is_read_after_a_fault() {
    assert_eq!(read(&[&PING, &[0x92, 16, 5], &PING], 9), ["message 25", "malformed"]);
    let mut reader = reader(9);
    let large = vec![0; MESSAGE_BYTES_MAX + 17];
    assert_eq!(words(&[reader.read(&mut key(), large).unwrap()]), ["too_large"]);
    assert!(reader.read(&mut key(), key().seal(&PING).unwrap()).is_none());
}

/// So many arrays or maps inside each other, with nil in the innermost, behind a head.
fn nested(head: &[u8], opening: &[u8], depth: usize) -> Vec<u8> {
    [head, &opening.repeat(depth), &[0xc0]].concat()
}

#[test]
fn what_is_passed_over_has_so_many_levels() {
    let openings: [&[u8]; 4] = [&[0x91], &[0xdc, 0, 1], &[0x81, 5], &[0xdf, 0, 0, 0, 1, 5]];
    let heads: [(&[u8], &str); 3] = [
        (&[0x93, 16, 7], "publish 7 malformed"),
        (&[0x94, 16, 7, 0x90], "publish 7 malformed"),
        (&[0x92, 26], "message 26"),
    ];
    for opening in openings {
        for (head, word) in heads {
            assert_eq!(read(&[&nested(head, opening, NESTED_MAX)], 9), [word]);
            for depth in [NESTED_MAX + 1, 2 * NESTED_MAX, 150_000] {
                assert_eq!(read(&[&nested(head, opening, depth), &PING], 9), ["malformed"]);
            }
        }
    }
}

#[test]
fn levels_are_counted_inside_each_other_only() {
    let value = nested(&[], &[0x91], NESTED_MAX);
    let message = [&[0xdc, 0, 103, 16, 7, 0x90][..], &value.repeat(100)].concat();
    assert_eq!(read(&[&message], 9), ["publish 7 malformed"]);
    let events = [&[0xdc, 0, 100][..], &nested(&[], &[0x91], NESTED_MAX - 1).repeat(100)].concat();
    assert_eq!(read(&[&[&[0x93, 16, 7][..], &events].concat()], 9), ["publish 7 too_large"]);
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn any_bytes_are_read_or_refused(message in prop::collection::vec(any::<u8>(), 0..60), head in 0..6_u8) {
        read(&[&[&[0x90 | head, 16], message.as_slice()].concat()], 9);
        let mut reader = LenientReader::new(&message);
        if reader.skip(1).is_ok() {
            prop_assert!(reader.remaining() < message.len());
        }
    }
}
