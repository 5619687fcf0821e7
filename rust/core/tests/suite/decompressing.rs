//! Points of many encodings at once: the very ones that curve25519-dalek finds one by one.

use curve25519_dalek::EdwardsPoint;
use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::scalar::Scalar;
use keepstep_core::decompression::{decompress_each, decompress_many};
use keepstep_core::hash::blake3;
use proptest::prelude::*;

use crate::support::cases;

/// 2^255 - 19, little-endian.
const PRIME: [u8; 32] = {
    let mut bytes = [0xff; 32];
    (bytes[0], bytes[31]) = (0xed, 0x7f);
    bytes
};

fn encoding_of(y: u64, sign: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&y.to_le_bytes());
    bytes[31] |= sign << 7;
    bytes
}

/// `below` less than 2^255, plus a sign.
fn encoding_below(below: u8, sign: u8) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = 0_u8.wrapping_sub(below);
    bytes[31] = 0x7f | sign << 7;
    bytes
}

/// y around 0, around the prime and around 2^255, powers of two, points of small order: with either sign.
fn edges() -> Vec<[u8; 32]> {
    let mut edges = Vec::new();
    for sign in [0, 1] {
        edges.extend((0..64).map(|y| encoding_of(y, sign)));
        edges.extend((1..=64).map(|below| encoding_below(below, sign)));
        edges.extend((0..255_u8).map(|bit| {
            let mut bytes = encoding_of(0, sign);
            bytes[usize::from(bit / 8)] |= 1 << (bit % 8);
            bytes
        }));
        edges.extend(EIGHT_TORSION.iter().map(|point| {
            let mut bytes = point.compress().to_bytes();
            bytes[31] ^= sign << 7;
            bytes
        }));
    }
    edges
}

/// The same points, usable as such: sums and multiples of them agree as well, so all four coordinates do.
fn check(encodings: &[[u8; 32]]) {
    let (many, each) = (decompress_many(encodings), decompress_each(encodings));
    assert_eq!(many.len(), encodings.len());
    for ((many, each), encoding) in many.iter().zip(&each).zip(encodings) {
        assert_eq!(many, each, "{encoding:?}");
        if let (Some(many), Some(each)) = (many, each) {
            assert_eq!(many.compress().as_bytes(), encoding);
            assert_eq!(many + ED25519_BASEPOINT_POINT, each + ED25519_BASEPOINT_POINT);
            assert_eq!(many * Scalar::from(7_u8), each * Scalar::from(7_u8));
        }
    }
}

#[test]
fn edges_of_the_encoding_have_the_points_that_they_have_alone() {
    let edges = edges();
    check(&edges);
    // In another lane each.
    check(&edges[3..]);
}

#[test]
fn what_is_not_canonical_has_no_point() {
    let mut refused: Vec<_> = (1..=19).flat_map(|below| [encoding_below(below, 0), encoding_below(below, 1)]).collect();
    refused.push(encoding_of(1, 1));
    let mut minus_one = PRIME;
    (minus_one[0], minus_one[31]) = (0xec, 0xff);
    refused.push(minus_one);
    assert!(decompress_many(&refused).iter().all(Option::is_none));
    // The library takes them: it reduces y and ignores a sign on zero.
    assert!(refused.iter().any(|bytes| CompressedEdwardsY(*bytes).decompress().is_some()));
}

#[test]
fn every_number_of_encodings_is_taken() {
    let point = |number: usize| EdwardsPoint::mul_base(&Scalar::from(number as u64)).compress().to_bytes();
    let encodings: Vec<_> = (1..=67).map(point).collect();
    for count in 0..encodings.len() {
        check(&encodings[..count]);
    }
}

#[test]
fn thousands_of_encodings_half_of_them_no_points_agree() {
    let encodings: Vec<_> = (0..4096_u64).map(|number| blake3(&number.to_be_bytes())).collect();
    let found = decompress_many(&encodings).iter().flatten().count();
    assert!((1800..2300).contains(&found), "{found}");
    check(&encodings);
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn any_encodings_agree(encodings in prop::collection::vec(any::<[u8; 32]>(), 0..40)) {
        check(&encodings);
    }

    /// Limbs of ones and zeros, where carries run furthest.
    #[test]
    fn encodings_of_long_runs_of_bits_agree(
        encodings in prop::collection::vec(prop::collection::vec(prop::sample::select(vec![0_u8, 0xff, 0x7f, 0x80]), 32), 0..40),
    ) {
        let encodings: Vec<[u8; 32]> = encodings.into_iter().map(|bytes| bytes.try_into().unwrap()).collect();
        check(&encodings);
    }
}
