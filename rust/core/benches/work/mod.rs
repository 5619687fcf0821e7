//! The work that both benchmarks do: signatures of a few devices, publish messages, what the server makes of them.

#![allow(clippy::unwrap_used, dead_code)] // each benchmark uses a part of it

use std::sync::Arc;

use keepstep_core::batch::Item;
use keepstep_core::ed25519::{self, PublicKey};
use keepstep_core::event::{Events, Signer};
use keepstep_core::hash::{Hash, blake3, chain_0, event_hash};
use keepstep_core::head::StreamHead;
use keepstep_core::ingest::Submission;
use keepstep_core::msgpack::{write_binary, write_integer};

pub(crate) const NOW_MS: u64 = 1_700_000_000_000;
const USER_KEY: [u8; 32] = [1; 32];
const PAYLOAD_BYTES: usize = 256;
const MESSAGE_BYTES: usize = 320;

pub(crate) struct Signature {
    pub(crate) key: usize,
    pub(crate) message: Vec<u8>,
    pub(crate) bytes: [u8; 64],
}

pub(crate) fn key(number: usize) -> ([u8; 32], PublicKey) {
    let secret = blake3(&number.to_be_bytes());
    (secret, PublicKey::from_bytes(&ed25519::public(&secret)).unwrap())
}

pub(crate) fn signatures(count: usize, keys: usize) -> (Vec<PublicKey>, Vec<Signature>) {
    let (secrets, publics): (Vec<_>, Vec<_>) = (0..keys).map(key).unzip();
    let sign = |index: usize| {
        let message = index.to_be_bytes().repeat(MESSAGE_BYTES / 8);
        let bytes = ed25519::sign(&secrets[index % keys], &message);
        Signature { key: index % keys, message, bytes }
    };
    (publics, (0..count).map(sign).collect())
}

pub(crate) fn items<'a>(publics: &'a [PublicKey], signatures: &'a [Signature]) -> Vec<Item<'a>> {
    let item = |signature: &'a Signature| Item {
        key: &publics[signature.key],
        message: [&signature.message, &[], &[], &[]],
        signature: &signature.bytes,
    };
    signatures.iter().map(item).collect()
}

/// One publish message with events of one device that follow one another.
fn publish(secret: &[u8; 32], signer: &Signer, stream: &str, count: u64) -> Vec<u8> {
    let mut raw = match u8::try_from(count) {
        Ok(few @ 0..=15) => vec![0x90 | few],
        _ => [&[0xdc][..], &u16::try_from(count).unwrap().to_be_bytes()].concat(),
    };
    let mut prev: Hash = [0; 32];
    for n in 1..=count {
        let payload = vec![7; PAYLOAD_BYTES];
        let mut header = vec![0x9e, 1, 0, 0xc4, 16];
        header.extend_from_slice(&NOW_MS.to_be_bytes()[2..]);
        header.extend_from_slice(&[0x70, 1, 0x80, 2, 3, 4, 5, 6, 7, 8]);
        header.push(0xa0 | u8::try_from(stream.len()).unwrap());
        header.extend_from_slice(stream.as_bytes());
        write_integer(&mut header, n);
        write_binary(&mut header, &prev[..16]).unwrap();
        header.push(0xc0);
        // Seen: nothing of this stream and of the list of devices.
        for chain in [chain_0(&USER_KEY, stream), [0; 32]] {
            header.extend_from_slice(&[0x92, 0]);
            write_binary(&mut header, &chain).unwrap();
        }
        header.push(0xc0);
        write_integer(&mut header, NOW_MS << 16);
        header.push(0xc0);
        write_integer(&mut header, PAYLOAD_BYTES as u64);
        write_binary(&mut header, &blake3(&payload)).unwrap();
        let signature = ed25519::sign(secret, &signer.signing_input(&header).concat());
        prev = event_hash(&header, &signature);
        raw.push(0x94);
        for part in [&header[..], &signature, &payload] {
            write_binary(&mut raw, part).unwrap();
        }
        raw.push(0xc0);
    }
    raw
}

/// One message of each of so many devices, every device of a user of its own.
pub(crate) struct Messages(Vec<(i64, Arc<Signer>, Arc<[u8]>)>);

impl Messages {
    pub(crate) fn new(devices: usize, events: u64) -> Self {
        let message = |number| {
            let (secret, device_key) = key(number);
            let signer = Signer { user_key: USER_KEY, device_id: [2; 16], device_key };
            let raw = publish(&secret, &signer, "notes", events);
            (i64::try_from(number).unwrap(), Arc::new(signer), Arc::<[u8]>::from(raw))
        };
        Self((0..devices).map(message).collect())
    }

    /// Parsed, not verified.
    pub(crate) fn submissions(&self) -> Vec<Submission> {
        let submission = |(pk, signer, raw): &(i64, Arc<Signer>, Arc<[u8]>)| Submission {
            user_pk: *pk,
            device_pk: 1,
            signer: Arc::clone(signer),
            capabilities: 1,
            suspect: false,
            anew: false,
            events: Arc::new(Events::parse(Arc::clone(raw), 1000, 1 << 18).unwrap()),
        };
        self.0.iter().map(submission).collect()
    }

    /// Of the streams that they begin.
    pub(crate) fn heads(&self) -> Vec<Option<Arc<StreamHead>>> {
        let head = |(pk, ..): &(i64, Arc<Signer>, Arc<[u8]>)| {
            Some(Arc::new(StreamHead::create(*pk, &USER_KEY, 3, "notes", 1, 0)))
        };
        self.0.iter().map(head).collect()
    }
}

/// A binary message of 126 to 65,535 bytes as a client sends it.
pub(crate) fn masked_frame(size: u16) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x82, 0xfe];
    frame.extend_from_slice(&size.to_be_bytes());
    frame.extend_from_slice(&mask);
    frame.extend((0..usize::from(size)).map(|at| 7 ^ mask[at % 4]));
    frame
}
