//! Verification of many signatures by one merged equation (docs/adr/0050).
//!
//! With random 128-bit `z`, all signatures are good exactly (but for a chance of 2^-128) where
//! `[8](Σ z·R + Σ_keys (Σ z·k)·A - (Σ z·s)·B)` is the identity. The sum over any part of the batch is a difference of two
//! such points, so the search for culprits halves the batch and never repeats what it has, down to parts that are verified
//! one by one. The cofactor makes both equations agree on every input: a verdict never depends on the batch's company.

use std::collections::HashMap;
use std::sync::LazyLock;

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::VartimeMultiscalarMul;

use crate::decompression::decompress_many;
use crate::ed25519::{PublicKey, SIGNATURE_BYTES, Statement, is_zero_times_cofactor, r_bytes};
use crate::multiscalar::{self, Multiple, halves, upper_half};
use crate::sha512::sha512_many;

/// Signatures of one equation. Larger ones are hardly faster, and a bad signature would cost more of them.
pub const EQUATION_SIGNATURES_MAX: usize = 1024;

/// The search for culprits ends at parts of this many, which are verified one by one: halving them further would save little where
/// one is bad and cost twice as much where all are.
const ALONE_MAX: usize = 8;

/// 2^128 times the base point.
static UPPER_BASE_POINT: LazyLock<EdwardsPoint> = LazyLock::new(|| upper_half(&ED25519_BASEPOINT_POINT));

/// A signature to verify; the message is the concatenation of its parts.
pub struct Item<'a> {
    /// Whose signature it should be.
    pub key: &'a PublicKey,
    /// The signed bytes.
    pub message: [&'a [u8]; 4],
    /// R ‖ s.
    pub signature: &'a [u8],
}

struct Term {
    /// The item's place in the batch.
    index: usize,
    /// The key's place in `Keys`.
    key: usize,
    statement: Statement,
    /// The random coefficient, and as a scalar.
    times: i128,
    z: Scalar,
}

/// One verdict per item, equal to what `PublicKey::verify` says of it alone.
pub fn verify_many(items: &[Item<'_>]) -> Vec<bool> {
    let mut verdicts = vec![false; items.len()];
    for (items, verdicts) in items.chunks(EQUATION_SIGNATURES_MAX).zip(verdicts.chunks_mut(EQUATION_SIGNATURES_MAX)) {
        verify_chunk(items, verdicts);
    }
    verdicts
}

/// One verdict per item, each by its own equation.
pub fn verify_each(items: &[Item<'_>]) -> Vec<bool> {
    let holds = |(statement, item): (Option<Statement>, &Item<'_>)| statement.is_some_and(|it| it.holds(item.key));
    statements(items).into_iter().zip(items).map(holds).collect()
}

/// What each signature states; `None` where it is not well formed.
fn statements(items: &[Item<'_>]) -> Vec<Option<Statement>> {
    let signatures: Vec<_> = items.iter().map(|item| <&[u8; SIGNATURE_BYTES]>::try_from(item.signature).ok()).collect();
    let (encodings, messages): (Vec<_>, Vec<_>) = items
        .iter()
        .zip(&signatures)
        .filter_map(|(item, signature)| {
            let (r, [context, user, device, header]) = (r_bytes((*signature)?), item.message);
            Some((*r, [&r[..], item.key.as_bytes(), context, user, device, header]))
        })
        .unzip();
    let mut decoded = decompress_many(&encodings).into_iter().zip(sha512_many(&messages));
    let statement = |signature: Option<&[u8; SIGNATURE_BYTES]>| {
        let signature = signature?;
        let (r, challenge) = decoded.next()?;
        Statement::new(signature, r?, &challenge)
    };
    signatures.into_iter().map(statement).collect()
}

fn verify_chunk(items: &[Item<'_>], verdicts: &mut [bool]) {
    let mut randomness = vec![0; items.len() * 16];
    // Without randomness that signers cannot predict a merged equation proves nothing.
    if items.len() < 2 || getrandom::fill(&mut randomness).is_err() {
        verdicts.copy_from_slice(&verify_each(items));
        return;
    }
    let (coefficients, _) = randomness.as_chunks::<16>();
    let mut keys = Keys::default();
    let mut terms = Vec::with_capacity(items.len());
    for (index, (statement, coefficient)) in statements(items).into_iter().zip(coefficients).enumerate() {
        if let Some(statement) = statement {
            let times = i128::from_le_bytes(*coefficient);
            let size = Scalar::from(times.unsigned_abs());
            let z = if times < 0 { -size } else { size };
            terms.push(Term { index, key: keys.index(items[index].key), statement, times, z });
        }
    }
    let sum = keys.sum(&terms);
    keys.settle(&terms, &sum, verdicts);
}

/// The distinct keys of a batch: their coefficients merge into one.
#[derive(Default)]
struct Keys<'a> {
    distinct: Vec<&'a PublicKey>,
    indices: HashMap<&'a [u8; 32], usize>,
}

impl<'a> Keys<'a> {
    fn index(&mut self, key: &'a PublicKey) -> usize {
        *self.indices.entry(key.as_bytes()).or_insert_with(|| {
            self.distinct.push(key);
            self.distinct.len() - 1
        })
    }

    /// `Σ z·R + Σ_keys (Σ z·k)·A - (Σ z·s)·B` over `terms`.
    fn sum(&self, terms: &[Term]) -> EdwardsPoint {
        let mut of_keys = vec![Scalar::ZERO; self.distinct.len()];
        let mut of_base = Scalar::ZERO;
        for Term { key, statement, z, .. } in terms {
            of_keys[*key] += z * statement.k;
            of_base -= z * statement.s;
        }
        let keys: Vec<_> = self.distinct.iter().zip(of_keys).filter(|(_, scalar)| *scalar != Scalar::ZERO).collect();
        let base = (of_base, &ED25519_BASEPOINT_POINT);
        if multiscalar::is_worth(terms.len() + 2 * keys.len() + 2) {
            let mut multiples: Vec<_> =
                terms.iter().map(|term| Multiple { times: term.times, point: &term.statement.r }).collect();
            let halves_of = |scalar, lower, upper| {
                halves(scalar).into_iter().zip([lower, upper]).map(|(times, point)| Multiple { times, point })
            };
            for (key, scalar) in &keys {
                multiples.extend(halves_of(scalar, key.point(), key.upper()));
            }
            multiples.extend(halves_of(&base.0, base.1, &UPPER_BASE_POINT));
            if let Some(sum) = multiscalar::sum(&multiples) {
                return sum;
            }
        }
        let (scalars, points): (Vec<Scalar>, Vec<&EdwardsPoint>) = terms
            .iter()
            .map(|term| (term.z, &term.statement.r))
            .chain(keys.into_iter().map(|(key, scalar)| (scalar, key.point())))
            .chain([base])
            .unzip();
        EdwardsPoint::vartime_multiscalar_mul(scalars, points)
    }

    /// Writes the verdicts of `terms`, whose sum is known.
    fn settle(&self, terms: &[Term], sum: &EdwardsPoint, verdicts: &mut [bool]) {
        if is_zero_times_cofactor(sum) {
            for term in terms {
                verdicts[term.index] = true;
            }
        } else if terms.len() <= ALONE_MAX {
            for term in terms {
                verdicts[term.index] = term.statement.holds(self.distinct[term.key]);
            }
        } else {
            let (left, right) = terms.split_at(terms.len() / 2);
            let left_sum = self.sum(left);
            self.settle(left, &left_sum, verdicts);
            self.settle(right, &(sum - left_sum), verdicts);
        }
    }
}
