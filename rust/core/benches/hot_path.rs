//! What an event costs: verification, ingest, sealing.
//!
//! `bare_equation` is the floor for `verify`: challenge hashes, decompression of R and one multiscalar multiplication, with no check
//! of encodings, no verdicts and fixed coefficients.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::{IsIdentity, VartimeMultiscalarMul};
use keepstep_core::aead::RecordKey;
use keepstep_core::batch::{Item, verify_each, verify_many};
use keepstep_core::ed25519::{self, PublicKey};
use keepstep_core::event::{Events, Signer};
use keepstep_core::hash::{Hash, blake3, event_hash};
use keepstep_core::head::StreamHead;
use keepstep_core::ingest::{Plan, Submission, ingest};
use keepstep_core::msgpack::{write_binary, write_integer};
use keepstep_core::rooms::Rooms;
use sha2::{Digest, Sha512};
use zeroize::Zeroizing;

const NOW_MS: u64 = 1_700_000_000_000;
const PAYLOAD_BYTES: usize = 256;
const MESSAGE_BYTES: usize = 320;

struct Signature {
    key: usize,
    message: Vec<u8>,
    bytes: [u8; 64],
}

fn key(number: usize) -> ([u8; 32], PublicKey) {
    let secret = blake3(&number.to_be_bytes());
    (secret, PublicKey::from_bytes(&ed25519::public(&secret)).unwrap())
}

fn signatures(count: usize, keys: usize) -> (Vec<PublicKey>, Vec<Signature>) {
    let (secrets, publics): (Vec<_>, Vec<_>) = (0..keys).map(key).unzip();
    let sign = |index: usize| {
        let message = index.to_be_bytes().repeat(MESSAGE_BYTES / 8);
        let bytes = ed25519::sign(&secrets[index % keys], &message);
        Signature { key: index % keys, message, bytes }
    };
    (publics, (0..count).map(sign).collect())
}

fn items<'a>(publics: &'a [PublicKey], signatures: &'a [Signature]) -> Vec<Item<'a>> {
    let item = |signature: &'a Signature| Item {
        key: &publics[signature.key],
        message: [&signature.message, &[], &[], &[]],
        signature: &signature.bytes,
    };
    signatures.iter().map(item).collect()
}

/// 128 bits as good as random: small or regular ones would make the equation cheaper.
fn coefficient(index: usize) -> Scalar {
    let hash = blake3(&index.to_be_bytes());
    Scalar::from(u128::from_le_bytes(*hash.first_chunk().unwrap()))
}

fn bare_equation(
    coefficients: &[Scalar],
    points: &[EdwardsPoint],
    publics: &[PublicKey],
    signatures: &[Signature],
) -> bool {
    let mut of_keys = vec![Scalar::ZERO; publics.len()];
    let mut of_base = Scalar::ZERO;
    let (mut scalars, mut all) = (Vec::new(), Vec::new());
    for (index, signature) in signatures.iter().enumerate() {
        let (r, s) = signature.bytes.split_first_chunk::<32>().unwrap();
        let z = coefficients[index];
        let challenge = Sha512::new_with_prefix(r).chain_update(publics[signature.key].as_bytes());
        let k = Scalar::from_bytes_mod_order_wide(&challenge.chain_update(&signature.message).finalize().into());
        of_keys[signature.key] += z * k;
        of_base -= z * Scalar::from_bytes_mod_order(s.try_into().unwrap());
        scalars.push(z);
        all.push(CompressedEdwardsY(*r).decompress().unwrap());
    }
    scalars.extend(of_keys);
    scalars.push(of_base);
    all.extend(points);
    all.push(ED25519_BASEPOINT_POINT);
    EdwardsPoint::vartime_multiscalar_mul(&scalars, &all).mul_by_cofactor().is_identity()
}

fn bench_verify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    for (count, keys) in [(1, 1), (16, 3), (16, 16), (256, 3), (256, 256), (1024, 3), (1024, 1024)] {
        let (publics, signatures) = signatures(count, keys);
        let points: Vec<_> =
            publics.iter().map(|key| CompressedEdwardsY(*key.as_bytes()).decompress().unwrap()).collect();
        let coefficients: Vec<_> = (0..count).map(coefficient).collect();
        let items = items(&publics, &signatures);
        group.throughput(Throughput::Elements(count as u64));
        let name = |what| BenchmarkId::new(what, format!("{count} of {keys} keys"));
        group.bench_function(name("batch"), |bencher| bencher.iter(|| verify_many(&items)));
        group.bench_function(name("bare_equation"), |bencher| {
            bencher.iter(|| assert!(bare_equation(&coefficients, &points, &publics, &signatures)));
        });
    }
    let (publics, mut bad) = signatures(1024, 3);
    let items_of_good = items(&publics, &bad);
    group.bench_function("each/1024 of 3 keys", |bencher| bencher.iter(|| verify_each(&items_of_good)));
    bad[700].bytes[40] ^= 1;
    let one_bad = items(&publics, &bad);
    group.bench_function("batch/1024 of 3 keys, one bad", |bencher| bencher.iter(|| verify_many(&one_bad)));
    drop(one_bad);
    for signature in &mut bad {
        signature.bytes[40] ^= 1;
    }
    let all_bad = items(&publics, &bad);
    group.bench_function("batch/1024 of 3 keys, all but one bad", |bencher| bencher.iter(|| verify_many(&all_bad)));
    group.finish();
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
        for _ in 0..2 {
            header.extend_from_slice(&[0x92, 0]);
            write_binary(&mut header, &[0; 32]).unwrap();
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

fn bench_ingest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ingest");
    for (devices, events) in [(1, 10), (10, 10), (3, 333), (100, 10), (1000, 1)] {
        let batch: Vec<_> = (0..devices)
            .map(|number| {
                let (secret, device_key) = key(number);
                let signer = Signer { user_key: [1; 32], device_id: [2; 16], device_key };
                let raw = publish(&secret, &signer, "notes", events);
                (i64::try_from(number).unwrap(), Arc::new(signer), Arc::<[u8]>::from(raw))
            })
            .collect();
        let submissions = || -> Vec<Submission> {
            let submission = |(pk, signer, raw): &(i64, Arc<Signer>, Arc<[u8]>)| Submission {
                user_pk: *pk,
                device_pk: 1,
                signer: Arc::clone(signer),
                capabilities: 1,
                suspect: false,
                events: Arc::new(Events::parse(Arc::clone(raw), 1000, 1 << 18).unwrap()),
            };
            batch.iter().map(submission).collect()
        };
        let heads: Vec<_> = (0..devices)
            .map(|pk| Some(Arc::new(StreamHead::create(i64::try_from(pk).unwrap(), &[1; 32], 3, "notes", 1, 0))))
            .collect();
        let run = |submissions: Vec<Submission>| {
            let plan = Plan::new(&submissions);
            ingest(&submissions, &plan, heads.clone(), Rooms::default(), NOW_MS).unwrap()
        };
        group.throughput(Throughput::Elements(devices as u64 * events));
        let name = |what| BenchmarkId::new(what, format!("{devices} devices, {events} events each"));
        group.bench_function(name("parse"), |bencher| bencher.iter(submissions));
        group.bench_function(name("first"), |bencher| bencher.iter_batched(submissions, run, BatchSize::LargeInput));
        let verified = submissions();
        run(verified.clone());
        group.bench_function(name("again"), |bencher| {
            bencher.iter_batched(|| verified.clone(), run, BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn bench_records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for (suite, name) in [(1, "AES-256-GCM"), (2, "ChaCha20-Poly1305")] {
        for size in [300, 65_536] {
            let mut key = RecordKey::new(suite, Zeroizing::new([7; 32]), vec![1; 32]).unwrap();
            let plaintext = vec![7; size];
            group.throughput(Throughput::Bytes(size as u64));
            group
                .bench_function(BenchmarkId::new(name, size), |bencher| bencher.iter(|| key.seal(&plaintext).unwrap()));
        }
    }
    group.finish();
}

criterion_group!(benches, bench_verify, bench_ingest, bench_records);
criterion_main!(benches);
