//! Batch verification: every verdict is the one that the signature alone would get.

use curve25519_dalek::EdwardsPoint;
use curve25519_dalek::constants::EIGHT_TORSION;
use curve25519_dalek::scalar::Scalar;
use keepstep_core::batch::{EQUATION_SIGNATURES_MAX, Item, verify_each, verify_many};
use keepstep_core::ed25519::{PublicKey, backend};
use proptest::prelude::*;
use sha2::{Digest, Sha512};

use crate::support::cases;

/// What a signer who may choose everything does to one signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Craft {
    /// As RFC 8032 has it.
    Honest,
    /// R with a small-order component: the cofactored equation holds.
    TorsionInR,
    /// R of small order only.
    SmallOrderR,
    /// s is one too large.
    WrongS,
    /// s plus the group order: another encoding of the same number.
    UnreducedS,
    /// Another message was signed.
    OtherMessage,
    /// R is the identity with the sign bit set: not canonical.
    NegativeZeroR,
    /// R's y plus the field's prime: not canonical.
    UnreducedR,
    /// R is no point at all.
    NoPoint,
}

const CRAFTS: [Craft; 9] = [
    Craft::Honest,
    Craft::TorsionInR,
    Craft::SmallOrderR,
    Craft::WrongS,
    Craft::UnreducedS,
    Craft::OtherMessage,
    Craft::NegativeZeroR,
    Craft::UnreducedR,
    Craft::NoPoint,
];

impl Craft {
    fn is_accepted(self) -> bool {
        matches!(self, Self::Honest | Self::TorsionInR | Self::SmallOrderR)
    }
}

/// The order of the prime group, little-endian.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

fn scalar(label: &str, number: u64) -> Scalar {
    Scalar::from_bytes_mod_order_wide(&Sha512::digest(format!("{label} {number}")).into())
}

struct Key {
    secret: Scalar,
    public: PublicKey,
}

impl Key {
    /// A key; every third has a small-order component.
    fn new(number: usize) -> Self {
        let secret = scalar("key", number as u64);
        let mut point = EdwardsPoint::mul_base(&secret);
        if number % 3 == 2 {
            point += EIGHT_TORSION[1 + number % 7];
        }
        Self { secret, public: PublicKey::from_bytes(point.compress().as_bytes()).unwrap() }
    }

    fn sign(&self, craft: Craft, message: &[u8], seed: u64) -> Vec<u8> {
        let nonce = if craft == Craft::SmallOrderR { Scalar::ZERO } else { scalar("nonce", seed) };
        let mut point = EdwardsPoint::mul_base(&nonce);
        if matches!(craft, Craft::TorsionInR | Craft::SmallOrderR) {
            point += EIGHT_TORSION[1 + usize::try_from(seed % 7).unwrap()];
        }
        let mut r = point.compress().to_bytes();
        let mut s_plus = Scalar::ZERO;
        match craft {
            Craft::WrongS => s_plus = Scalar::ONE,
            Craft::NegativeZeroR => {
                r = [0; 32];
                (r[0], r[31]) = (1, 0x80);
            }
            // y = 3 is on the curve; 3 + p is its other encoding.
            Craft::UnreducedR => {
                r = [0xff; 32];
                (r[0], r[31]) = (0xf0, 0x7f);
            }
            // y = 2 is not on the curve.
            Craft::NoPoint => {
                r = [0; 32];
                r[0] = 2;
            }
            _ => {}
        }
        let signed: &[u8] = if craft == Craft::OtherMessage { b"another" } else { message };
        let challenge = Sha512::new().chain_update(r).chain_update(self.public.as_bytes()).chain_update(signed);
        let k = Scalar::from_bytes_mod_order_wide(&challenge.finalize().into());
        let mut s = (nonce + k * self.secret + s_plus).to_bytes();
        if craft == Craft::UnreducedS {
            let mut carry = 0;
            for (byte, order) in s.iter_mut().zip(ORDER) {
                carry += u16::from(*byte) + u16::from(order);
                *byte = carry.to_le_bytes()[0];
                carry >>= 8;
            }
        }
        [r, s].concat()
    }
}

/// Signs (key, craft) each, and checks the three verdicts: constructed, alone, in the batch.
fn check(plan: &[(usize, Craft)]) {
    let keys: Vec<Key> = (0..8).map(Key::new).collect();
    let signed: Vec<(Vec<u8>, Vec<u8>)> = plan
        .iter()
        .enumerate()
        .map(|(index, (key, craft))| {
            let message = format!("message {index}").into_bytes();
            let signature = keys[*key].sign(*craft, &message, index as u64);
            (message, signature)
        })
        .collect();
    let items: Vec<Item<'_>> = plan
        .iter()
        .zip(&signed)
        .map(|((key, _), (message, signature))| Item {
            key: &keys[*key].public,
            message: [&message[..3], &message[3..], &[], &[]],
            signature,
        })
        .collect();
    let expected: Vec<bool> = plan.iter().map(|(_, craft)| craft.is_accepted()).collect();
    let alone: Vec<bool> = items.iter().map(|item| item.key.verify(&item.message, item.signature).is_ok()).collect();
    assert_eq!(alone, expected);
    assert_eq!(verify_each(&items), expected);
    assert_eq!(verify_many(&items), expected);
}

fn crafts(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<(usize, Craft)>> {
    // Mostly honest, so that whole halves of the search pass.
    let craft = prop_oneof![4 => Just(Craft::Honest), 1 => prop::sample::select(&CRAFTS[..])];
    prop::collection::vec((0..8_usize, craft), count)
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn batch_and_single_verdicts_agree_on_crafted_signatures(plan in crafts(0..40)) {
        check(&plan);
    }

    #[test]
    fn exactly_the_culprits_are_found(bad in prop::collection::btree_set(0..64_usize, 0..6)) {
        let plan: Vec<_> = (0..64)
            .map(|index| (index % 8, if bad.contains(&index) { Craft::WrongS } else { Craft::Honest }))
            .collect();
        check(&plan);
    }

    #[test]
    fn any_bytes_get_the_same_verdict_alone_and_in_company(
        signature in prop::collection::vec(any::<u8>(), 60..68),
        key in 0..8_usize,
    ) {
        let keys = [Key::new(key), Key::new(key + 1)];
        let good = keys[1].sign(Craft::Honest, b"good", 1);
        let items = [
            Item { key: &keys[0].public, message: [b"any", b"", b"", b""], signature: &signature },
            Item { key: &keys[1].public, message: [b"good", b"", b"", b""], signature: &good },
        ];
        prop_assert_eq!(verify_many(&items), verify_each(&items));
        prop_assert!(verify_many(&items)[1]);
    }
}

#[test]
fn each_craft_alone_has_its_verdict() {
    for craft in CRAFTS {
        check(&[(2, craft)]);
        check(&[(2, craft), (0, Craft::Honest)]);
    }
}

#[test]
fn a_batch_of_several_equations_finds_culprits_in_each() {
    let mut plan = vec![(0, Craft::Honest); EQUATION_SIGNATURES_MAX + 300];
    plan[5] = (1, Craft::WrongS);
    plan[EQUATION_SIGNATURES_MAX + 200] = (2, Craft::TorsionInR);
    plan[EQUATION_SIGNATURES_MAX + 250] = (3, Craft::OtherMessage);
    check(&plan);
}

#[test]
fn a_batch_of_nothing_but_bad_signatures_is_refused_one_by_one() {
    check(&[(1, Craft::WrongS); 33]);
}

/// Without random coefficients, errors that cancel would pass the merged equation.
#[test]
fn errors_that_cancel_in_the_plain_sum_are_found() {
    let key = Key::new(0);
    let messages = [b"one".as_slice(), b"two"];
    let mut signatures = [key.sign(Craft::Honest, messages[0], 1), key.sign(Craft::Honest, messages[1], 2)];
    for (signature, error) in signatures.iter_mut().zip([Scalar::ONE, -Scalar::ONE]) {
        let s = Scalar::from_canonical_bytes(signature[32..].try_into().unwrap()).unwrap() + error;
        signature[32..].copy_from_slice(s.as_bytes());
    }
    let items: Vec<_> = messages
        .iter()
        .zip(&signatures)
        .map(|(message, signature)| Item { key: &key.public, message: [message, b"", b"", b""], signature })
        .collect();
    assert_eq!(verify_many(&items), [false, false]);
}

#[test]
fn keys_that_are_not_canonical_points_of_large_order_are_refused() {
    let mut refused: Vec<[u8; 32]> = EIGHT_TORSION.iter().map(|point| point.compress().to_bytes()).collect();
    // y = 2 is not on the curve; 3 + p encodes 3 again; -1 with a sign is not canonical.
    let mut no_point = [0; 32];
    no_point[0] = 2;
    let mut unreduced = [0xff; 32];
    (unreduced[0], unreduced[31]) = (0xf0, 0x7f);
    let mut negative_zero = [0xff; 32];
    negative_zero[0] = 0xec;
    refused.extend([no_point, unreduced, negative_zero]);
    for bytes in refused {
        assert_eq!(PublicKey::from_bytes(&bytes).unwrap_err().code(), "malformed");
    }
    assert_eq!(PublicKey::from_bytes(&[1; 31]).unwrap_err().code(), "malformed");
}

/// y = 3 is a point of large order whose reduced encoding is fine: the test above refuses its other encoding for that alone.
#[test]
fn the_canonical_encoding_of_the_same_point_is_accepted() {
    let mut three = [0; 32];
    three[0] = 3;
    assert_eq!(PublicKey::from_bytes(&three).unwrap().as_bytes(), &three);
}

#[test]
fn the_backend_is_one_of_the_documented_three() {
    assert!(["avx512", "avx2", "serial"].contains(&backend()));
}
