//! Devices that sign, events as they travel, and vectors from files.

use std::sync::Arc;

use keepstep_core::ed25519::{self, PublicKey};
use keepstep_core::event::{Events, Signer};
use keepstep_core::hash::{Hash, blake3, chain_0, event_hash};
use keepstep_core::head::StreamHead;
use keepstep_core::ingest::Submission;
use keepstep_core::msgpack::{write_binary, write_integer, write_optional_binary};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};

/// So many cases, always the same ones.
pub(crate) fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() }
}

/// A moment, unix milliseconds.
pub(crate) const NOW_MS: u64 = 1_700_000_000_000;

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// An array in a header, or nil.
pub(crate) fn write_position(output: &mut Vec<u8>, seq: u64, chain: &Hash) {
    output.push(0x92);
    write_integer(output, seq);
    write_binary(output, chain).unwrap();
}

/// A header's fields; `Default` is a good first event.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) version: u64,
    pub(crate) kind: u64,
    pub(crate) id: Vec<u8>,
    pub(crate) stream: String,
    pub(crate) n: u64,
    pub(crate) prev: Vec<u8>,
    /// As encoded.
    pub(crate) base: Vec<u8>,
    /// Nothing read, where it does not say.
    pub(crate) seen: Option<(u64, Hash)>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) hlc: u64,
    pub(crate) ttl_s: Option<u64>,
    pub(crate) payload: Vec<u8>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            version: 1,
            kind: 0,
            id: id_at(NOW_MS),
            stream: "notes".into(),
            n: 1,
            prev: vec![0; 16],
            base: vec![0xc0],
            seen: None,
            key: None,
            hlc: NOW_MS << 16,
            ttl_s: None,
            payload: b"sealed".to_vec(),
        }
    }
}

/// A UUIDv7 of that time.
pub(crate) fn id_at(time_ms: u64) -> Vec<u8> {
    let mut id = time_ms.to_be_bytes()[2..].to_vec();
    id.extend_from_slice(&[0x70, 1, 0x80, 2, 3, 4, 5, 6, 7, 8]);
    id
}

impl Draft {
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut output = vec![0x9e];
        write_integer(&mut output, self.version);
        write_integer(&mut output, self.kind);
        write_binary(&mut output, &self.id).unwrap();
        write_text(&mut output, &self.stream);
        write_integer(&mut output, self.n);
        write_binary(&mut output, &self.prev).unwrap();
        output.extend_from_slice(&self.base);
        let (seq, chain) = self.seen.unwrap_or_else(|| (0, chain_0(&USER_KEY, &self.stream)));
        write_position(&mut output, seq, &chain);
        write_position(&mut output, 4, &[4; 32]);
        write_optional_binary(&mut output, self.key.as_deref()).unwrap();
        write_integer(&mut output, self.hlc);
        match self.ttl_s {
            Some(ttl_s) => write_integer(&mut output, ttl_s),
            None => output.push(0xc0),
        }
        write_integer(&mut output, self.payload.len() as u64);
        write_binary(&mut output, &blake3(&self.payload)).unwrap();
        output
    }
}

pub(crate) fn write_text(output: &mut Vec<u8>, text: &str) {
    match text.len() {
        0..=31 => output.push(0xa0 | u8::try_from(text.len()).unwrap()),
        _ => output.extend_from_slice(&[0xd9, u8::try_from(text.len()).unwrap()]),
    }
    output.extend_from_slice(text.as_bytes());
}

/// An event as it travels.
#[derive(Clone)]
pub(crate) struct Signed {
    pub(crate) header: Vec<u8>,
    pub(crate) signature: Vec<u8>,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) trace: Option<Vec<u8>>,
}

impl Signed {
    pub(crate) fn hash(&self) -> Hash {
        event_hash(&self.header, &self.signature)
    }

    pub(crate) fn write(&self, output: &mut Vec<u8>) {
        output.push(0x94);
        write_binary(output, &self.header).unwrap();
        write_binary(output, &self.signature).unwrap();
        write_optional_binary(output, self.payload.as_deref()).unwrap();
        write_optional_binary(output, self.trace.as_deref()).unwrap();
    }
}

pub(crate) fn publish(events: &[Signed]) -> Vec<u8> {
    let mut output = vec![0xdc];
    output.extend_from_slice(&u16::try_from(events.len()).unwrap().to_be_bytes());
    if events.len() < 16 {
        output = vec![0x90 | u8::try_from(events.len()).unwrap()];
    }
    for event in events {
        event.write(&mut output);
    }
    output
}

pub(crate) fn parse(events: &[Signed]) -> Arc<Events> {
    Arc::new(Events::parse(publish(events).into(), 1000, 1 << 18).unwrap())
}

/// A device of user 1.
pub(crate) struct Device {
    pub(crate) device_pk: i64,
    pub(crate) secret: [u8; 32],
    pub(crate) signer: Arc<Signer>,
}

pub(crate) const USER_KEY: [u8; 32] = [0xaa; 32];

impl Device {
    pub(crate) fn new(number: u8) -> Self {
        let secret = [number; 32];
        let device_key = PublicKey::from_bytes(&ed25519::public(&secret)).unwrap();
        let signer = Signer { user_key: USER_KEY, device_id: [number; 16], device_key };
        Self { device_pk: i64::from(number), secret, signer: Arc::new(signer) }
    }

    pub(crate) fn sign(&self, draft: &Draft) -> Signed {
        let header = draft.header();
        let signature = ed25519::sign(&self.secret, &self.signer.signing_input(&header).concat()).to_vec();
        Signed { header, signature, payload: Some(draft.payload.clone()), trace: None }
    }

    /// `count` good events in `stream`, following one another, the first with number `n` after `prev`.
    pub(crate) fn series(&self, stream: &str, n: u64, prev: &Hash, count: u64) -> Vec<Signed> {
        let mut prev = *prev;
        let next = |n| {
            let payload = format!("{stream} {n}").into_bytes();
            let draft = Draft { stream: stream.into(), n, prev: prev[..16].to_vec(), payload, ..Draft::default() };
            let event = self.sign(&draft);
            prev = event.hash();
            event
        };
        (n..n + count).map(next).collect()
    }

    pub(crate) fn submission(&self, events: &Arc<Events>) -> Submission {
        Submission {
            user_pk: 1,
            device_pk: self.device_pk,
            signer: Arc::clone(&self.signer),
            capabilities: 7,
            suspect: false,
            anew: false,
            events: Arc::clone(events),
        }
    }
}

pub(crate) fn new_stream(stream_pk: i64, name: &str) -> Arc<StreamHead> {
    Arc::new(StreamHead::create(1, &USER_KEY, stream_pk, name, 1, 0))
}
