//! What an event costs: verification, ingest, sealing.
//!
//! `bare_equation` is the floor for `verify`: challenge hashes, decompression of R and one multiscalar multiplication, all by the same
//! code, with no check of encodings, no verdicts and fixed coefficients. `library_equation` is what the libraries reach with it.

#![allow(clippy::unwrap_used, missing_docs)]

mod work;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::{IsIdentity, VartimeMultiscalarMul};
use keepstep_core::aead::Cipher;
use keepstep_core::batch::{verify_each, verify_many};
use keepstep_core::decompression::{decompress_each, decompress_many};
use keepstep_core::ed25519::PublicKey;
use keepstep_core::hash::blake3;
use keepstep_core::ingest::{Plan, Submission, ingest};
use keepstep_core::multiscalar::{Multiple, halves, is_worth, sum, upper_half};
use keepstep_core::rooms::Rooms;
use keepstep_core::sha512::{sha512_each, sha512_many};
use keepstep_core::websocket::{FrameReader, Received, frame_message};

use crate::work::{Messages, NOW_MS, Signature, items, masked_frame, signatures};

/// Of one call of the codec.
const FRAMES: usize = 100;

/// 128 bits as good as random: small or regular ones would make the equation cheaper.
fn coefficient(index: usize) -> i128 {
    let hash = blake3(&index.to_be_bytes());
    i128::from_le_bytes(*hash.first_chunk().unwrap())
}

fn scalar(coefficient: i128) -> Scalar {
    let size = Scalar::from(coefficient.unsigned_abs());
    if coefficient < 0 { -size } else { size }
}

/// What the equation is of, decoded ahead: keys as points and, for the extension's sums, 2^128 times each.
struct Prepared<'a> {
    coefficients: Vec<i128>,
    keys: Vec<[EdwardsPoint; 2]>,
    base: [EdwardsPoint; 2],
    messages: Vec<[&'a [u8]; 3]>,
    signatures: &'a [Signature],
}

impl<'a> Prepared<'a> {
    fn new(publics: &'a [PublicKey], signatures: &'a [Signature]) -> Self {
        let both = |point| [point, upper_half(&point)];
        let key = |key: &PublicKey| both(CompressedEdwardsY(*key.as_bytes()).decompress().unwrap());
        Self {
            coefficients: (0..signatures.len()).map(coefficient).collect(),
            keys: publics.iter().map(key).collect(),
            base: both(ED25519_BASEPOINT_POINT),
            messages: signatures
                .iter()
                .map(|it| [&it.bytes[..32], publics[it.key].as_bytes(), &it.message[..]])
                .collect(),
            signatures,
        }
    }

    /// Coefficients of R, of the keys and of the base point.
    fn scalars(&self, challenges: &[[u8; 64]]) -> (Vec<Scalar>, Vec<Scalar>, Scalar) {
        let mut of_keys = vec![Scalar::ZERO; self.keys.len()];
        let mut of_base = Scalar::ZERO;
        let of_r: Vec<_> = self.coefficients.iter().copied().map(scalar).collect();
        for ((signature, challenge), z) in self.signatures.iter().zip(challenges).zip(&of_r) {
            of_keys[signature.key] += z * Scalar::from_bytes_mod_order_wide(challenge);
            of_base -= z * Scalar::from_bytes_mod_order(*signature.bytes.last_chunk().unwrap());
        }
        (of_r, of_keys, of_base)
    }

    fn encodings(&self) -> Vec<[u8; 32]> {
        self.signatures.iter().map(|signature| *signature.bytes.first_chunk().unwrap()).collect()
    }

    /// The same parts as `verify_many`, with nothing around them.
    fn bare_equation(&self) -> bool {
        let (of_r, of_keys, of_base) = self.scalars(&sha512_many(&self.messages));
        let points: Vec<EdwardsPoint> = decompress_many(&self.encodings()).into_iter().flatten().collect();
        if !is_worth(points.len() + 2 * self.keys.len() + 2) {
            return self.library_sum(of_r, of_keys, of_base, points);
        }
        let of_points = self.coefficients.iter().zip(&points).map(|(&times, point)| Multiple { times, point });
        let halved = of_keys.iter().chain([&of_base]).zip(self.keys.iter().chain([&self.base]));
        let of_halves = halved.flat_map(|(scalar, both)| {
            halves(scalar).into_iter().zip(both).map(|(times, point)| Multiple { times, point })
        });
        sum(&of_points.chain(of_halves).collect::<Vec<_>>()).unwrap().mul_by_cofactor().is_identity()
    }

    /// The same equation by sha2 and curve25519-dalek alone.
    fn library_equation(&self) -> bool {
        let (of_r, of_keys, of_base) = self.scalars(&sha512_each(&self.messages));
        let points = decompress_each(&self.encodings()).into_iter().flatten().collect();
        self.library_sum(of_r, of_keys, of_base, points)
    }

    fn library_sum(
        &self,
        mut scalars: Vec<Scalar>,
        of_keys: Vec<Scalar>,
        of_base: Scalar,
        mut points: Vec<EdwardsPoint>,
    ) -> bool {
        scalars.extend(of_keys);
        scalars.push(of_base);
        points.extend(self.keys.iter().map(|[key, _]| key));
        points.push(ED25519_BASEPOINT_POINT);
        EdwardsPoint::vartime_multiscalar_mul(&scalars, &points).mul_by_cofactor().is_identity()
    }
}

fn bench_verify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    let few_and_distinct = [4, 16, 32, 64, 256, 333, 1024].into_iter().flat_map(|count| [(count, 3), (count, count)]);
    for (count, keys) in few_and_distinct.chain([(1, 1)]) {
        let (publics, signatures) = signatures(count, keys);
        let prepared = Prepared::new(&publics, &signatures);
        let items = items(&publics, &signatures);
        group.throughput(Throughput::Elements(count as u64));
        let name = |what| BenchmarkId::new(what, format!("{count} of {keys} keys"));
        group.bench_function(name("batch"), |bencher| bencher.iter(|| verify_many(&items)));
        group.bench_function(name("bare_equation"), |bencher| bencher.iter(|| assert!(prepared.bare_equation())));
        group.bench_function(name("library_equation"), |bencher| bencher.iter(|| assert!(prepared.library_equation())));
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

/// The largest parts of a verification.
fn bench_parts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parts");
    for count in [1, 3, 8, 16, 256, 1024] {
        let (_, signatures) = signatures(count, 1);
        let encodings: Vec<[u8; 32]> =
            signatures.iter().map(|signature| *signature.bytes.first_chunk().unwrap()).collect();
        group.throughput(Throughput::Elements(count as u64));
        let name = |what| BenchmarkId::new(what, count);
        group.bench_function(name("decompress_many"), |bencher| bencher.iter(|| decompress_many(&encodings)));
        group.bench_function(name("decompress_each"), |bencher| bencher.iter(|| decompress_each(&encodings)));
        let messages: Vec<_> = signatures.iter().map(|it| [&it.bytes[..], &it.message]).collect();
        group.bench_function(name("sha512_many"), |bencher| bencher.iter(|| sha512_many(&messages)));
        group.bench_function(name("sha512_each"), |bencher| bencher.iter(|| sha512_each(&messages)));
    }
    group.finish();
}

fn bench_ingest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ingest");
    for (devices, events) in [(1, 10), (10, 10), (3, 333), (100, 10), (1000, 1)] {
        let messages = Messages::new(devices, events);
        let submissions = || messages.submissions();
        let heads = messages.heads();
        let run = |submissions: Vec<Submission>| {
            let plan = Plan::new(&submissions);
            let ingested = ingest(&submissions, &plan, heads.clone(), Rooms::default(), NOW_MS).unwrap();
            assert_eq!(ingested.moved.len(), devices, "all streams move");
            ingested
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
    let mut group = criterion.benchmark_group("records");
    for (suite, name) in [(1, "AES-256-GCM"), (2, "ChaCha20-Poly1305")] {
        let cipher = Cipher::new(suite, &[7; 32]).unwrap();
        for size in [300, 65_536] {
            let plaintext = vec![7; size];
            let sealed = cipher.seal(&[0; 12], &[1; 32], &plaintext).unwrap();
            group.throughput(Throughput::Bytes(size as u64));
            let id = |what| BenchmarkId::new(what, format!("{name} {size}"));
            group.bench_function(id("seal"), |bencher| {
                bencher.iter(|| cipher.seal(&[0; 12], &[1; 32], &plaintext).unwrap());
            });
            group.bench_function(id("open"), |bencher| {
                bencher.iter(|| cipher.open(&[0; 12], &[1; 32], &sealed).unwrap());
            });
        }
    }
    group.finish();
}

fn bench_websocket(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("websocket");
    for size in [300, 4_000] {
        let (frame, message) = (masked_frame(size), vec![7; usize::from(size)]);
        let (received, mut sent) = (frame.repeat(FRAMES), Vec::new());
        group.throughput(Throughput::Elements(FRAMES as u64));
        group.bench_function(BenchmarkId::new("receive", size), |bencher| {
            bencher.iter(|| {
                let mut messages = Received::default();
                assert!(FrameReader::new(1 << 20).feed(&received, &mut messages).is_none());
                messages
            });
        });
        group.bench_function(BenchmarkId::new("send", size), |bencher| {
            bencher.iter(|| {
                sent.clear();
                for _ in 0..FRAMES {
                    frame_message(&message, &mut sent);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench_verify, bench_parts, bench_ingest, bench_records, bench_websocket);
criterion_main!(benches);
