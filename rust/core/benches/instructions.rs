//! Fixed work whose instructions callgrind counts: `python -m bench.instructions` runs each part by its name and compares.
//!
//! Preparation is not counted: only what the function `counted` calls.

#![allow(clippy::unwrap_used, missing_docs)]

mod work;

use std::hint::black_box;

use keepstep_core::aead::Cipher;
use keepstep_core::batch::{verify_each, verify_many};
use keepstep_core::ingest::{Plan, Submission, ingest};
use keepstep_core::rooms::Rooms;
use keepstep_core::websocket::{FrameReader, Received, frame_message};

use crate::work::{Messages, NOW_MS, items, masked_frame, signatures};

/// Frames and records, each of 300 bytes.
const MANY: usize = 1000;

const PARTS: [(&str, fn()); 11] = [
    ("verify: 256 of 3 keys", || verify(256, 3)),
    ("verify: 256 of 256 keys", || verify(256, 256)),
    ("verify: 256 of 3 keys, one bad", || verify_bad(256, 3, 1)),
    ("verify: 256 of 3 keys, all bad", || verify_bad(256, 3, 256)),
    ("verify: 32 one by one", verify_apart),
    ("parse: 1000 events", || parse(1, 1000)),
    ("ingest: 1000 events of one device, verified before", || ingest_again(1, 1000)),
    ("ingest: 1 event of each of 200 devices, verified before", || ingest_again(200, 1)),
    ("seal and open: 1000 records", records),
    ("websocket: 1000 frames received", frames_received),
    ("websocket: 1000 frames sent", frames_sent),
];

/// The function whose instructions are counted, with those of all that it calls.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn verify(count: usize, keys: usize) {
    let (publics, signatures) = signatures(count, keys);
    let items = items(&publics, &signatures);
    assert!(counted(|| verify_many(&items)).into_iter().all(|good| good));
}

/// The search for culprits: it must stay bounded, whatever a device sends.
fn verify_bad(count: usize, keys: usize, bad: usize) {
    let (publics, mut signatures) = signatures(count, keys);
    for signature in signatures.iter_mut().rev().take(bad) {
        signature.bytes[40] ^= 1;
    }
    let items = items(&publics, &signatures);
    assert_eq!(counted(|| verify_many(&items)).into_iter().filter(|good| !good).count(), bad);
}

fn verify_apart() {
    let (publics, signatures) = signatures(32, 3);
    let items = items(&publics, &signatures);
    assert!(counted(|| verify_each(&items)).into_iter().all(|good| good));
}

fn parse(devices: usize, events: u64) {
    let messages = Messages::new(devices, events);
    assert_eq!(counted(|| messages.submissions()).len(), devices);
}

fn ingest_again(devices: usize, events: u64) {
    let messages = Messages::new(devices, events);
    let (submissions, heads) = (messages.submissions(), messages.heads());
    let run = |submissions: &[Submission]| {
        let plan = Plan::new(submissions);
        ingest(submissions, &plan, heads.clone(), Rooms::default(), NOW_MS).unwrap()
    };
    run(&submissions);
    assert_eq!(counted(|| run(&submissions)).moved.len(), devices);
}

fn records() {
    let (cipher, plaintext) = (Cipher::new(1, &[7; 32]).unwrap(), [7; 300]);
    counted(|| {
        for _ in 0..MANY {
            let sealed = cipher.seal(&[0; 12], &[1; 32], &plaintext).unwrap();
            black_box(cipher.open(&[0; 12], &[1; 32], &sealed).unwrap());
        }
    });
}

fn frames_received() {
    let bytes = masked_frame(300).repeat(MANY);
    let mut received = Received::default();
    assert!(counted(|| FrameReader::new(1 << 20).feed(&bytes, &mut received)).is_none());
}

fn frames_sent() {
    let mut sent = Vec::new();
    counted(|| {
        for _ in 0..MANY {
            frame_message(&[7; 300], &mut sent);
        }
    });
}

/// Without an argument the names of all parts; with one, that part.
fn main() {
    let wanted = std::env::args().nth(1).filter(|argument| argument != "--bench");
    match wanted {
        None => PARTS.iter().for_each(|(name, _)| println!("{name}")),
        Some(wanted) => {
            let (_, part) = PARTS.iter().find(|(name, _)| *name == wanted).unwrap();
            part();
        }
    }
}
