//! Verification of many signatures by one merged equation (docs/adr/0050).
//!
//! With random 128-bit `z`, all signatures are good exactly (but for a chance of 2^-128) where
//! `[8](Σ z·R + Σ_keys (Σ z·k)·A - (Σ z·s)·B)` is the identity. The sum over any part of the batch is a difference of two
//! such points, so the search for culprits halves the batch and never repeats what it has, down to parts that are verified
//! one by one. The cofactor makes both equations agree on every input: a verdict never depends on the batch's company.

use std::collections::HashMap;

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::VartimeMultiscalarMul;

use crate::decompression::decompress_many;
use crate::ed25519::{PublicKey, SIGNATURE_BYTES, Statement, is_zero_times_cofactor, r_bytes};

/// Signatures of one equation. Larger ones are hardly faster, and a bad signature would cost more of them.
pub const EQUATION_SIGNATURES_MAX: usize = 1024;

/// The search for culprits ends at parts of this many, which are verified one by one: halving them further would save little where
/// one is bad and cost twice as much where all are.
const ALONE_MAX: usize = 8;

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
    let encodings: Vec<_> = signatures.iter().flatten().map(|signature| *r_bytes(signature)).collect();
    let mut points = decompress_many(&encodings).into_iter();
    let statement = |(item, signature): (&Item<'_>, Option<&[u8; SIGNATURE_BYTES]>)| {
        let signature = signature?;
        let r = points.next().flatten()?;
        Statement::new(item.key, &item.message, signature, r)
    };
    items.iter().zip(signatures).map(statement).collect()
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
            let z = Scalar::from(u128::from_le_bytes(*coefficient));
            terms.push(Term { index, key: keys.index(items[index].key), statement, z });
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
        let keys = of_keys.iter().zip(&self.distinct).filter(|(scalar, _)| **scalar != Scalar::ZERO);
        let (scalars, points): (Vec<&Scalar>, Vec<&EdwardsPoint>) = terms
            .iter()
            .map(|term| (&term.z, &term.statement.r))
            .chain(keys.map(|(scalar, key)| (scalar, key.point())))
            .chain([(&of_base, &ED25519_BASEPOINT_POINT)])
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
