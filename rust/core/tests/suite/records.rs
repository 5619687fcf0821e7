//! Records: counters, rekeying, refusals.

use keepstep_core::aead::{Cipher, RecordKey, TAG_BYTES};
use keepstep_core::agreement::hkdf_sha256_expand;
use proptest::prelude::*;
use zeroize::Zeroizing;

use crate::support::cases;

fn pair(suite: u64) -> (RecordKey, RecordKey) {
    let key = || RecordKey::new(suite, Zeroizing::new([7; 32]), b"th3".to_vec()).unwrap();
    (key(), key())
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

#[test]
fn a_record_is_the_plain_aead_under_the_counter() {
    for suite in [1, 2] {
        let (mut sealer, _) = pair(suite);
        let cipher = Cipher::new(suite, &[7; 32]).unwrap();
        for counter in 0..3 {
            assert_eq!(sealer.records(), counter);
            assert_eq!(sealer.seal(b"text").unwrap(), cipher.seal(&nonce(counter), b"th3", b"text").unwrap());
        }
    }
}

#[test]
fn a_record_that_does_not_open_leaves_the_counter() {
    let (mut sealer, mut opener) = pair(1);
    let records = [sealer.seal(b"first").unwrap(), sealer.seal(b"second").unwrap()];
    assert_eq!(opener.open(&records[1]).unwrap_err().code(), "bad_record");
    assert_eq!(opener.records(), 0);
    assert_eq!(opener.open(&records[0]).unwrap(), b"first");
    assert_eq!(opener.open(&records[0]).unwrap_err().code(), "bad_record");
    assert_eq!(opener.open(&records[1]).unwrap(), b"second");
    assert_eq!(opener.records(), 2);
}

#[test]
fn many_records_open_together_or_not_at_all() {
    let (mut sealer, mut opener) = pair(2);
    let mut records: Vec<_> = [b"a", b"b", b"c"].iter().map(|text| sealer.seal(*text).unwrap()).collect();
    assert_eq!(opener.open_many(&records).unwrap(), [b"a", b"b", b"c"]);
    for text in [b"d", b"e"] {
        records.push(sealer.seal(text).unwrap());
    }
    records[4][0] ^= 1;
    assert!(opener.open_many(&records[3..]).is_err());
    assert_eq!(opener.records(), 3);
    assert_eq!(opener.open(&records[3]).unwrap(), b"d");
}

#[test]
fn both_sides_rekey_to_the_expanded_secret() {
    for suite in [1, 2] {
        let (mut sealer, mut opener) = pair(suite);
        let before = sealer.seal(b"text").unwrap();
        opener.open(&before).unwrap();
        sealer.rekey().unwrap();
        opener.rekey().unwrap();
        assert_eq!((sealer.records(), opener.records()), (0, 0));
        let after = sealer.seal(b"text").unwrap();
        assert_ne!(before, after);
        let secret = hkdf_sha256_expand(&[7; 32], b"keepstep/v1/rekey", 32).unwrap();
        let cipher = Cipher::new(suite, secret.as_slice().try_into().unwrap()).unwrap();
        assert_eq!(cipher.seal(&nonce(0), b"th3", b"text").unwrap(), after);
        assert_eq!(opener.open(&after).unwrap(), b"text");
    }
}

#[test]
fn other_suites_are_unsupported() {
    for suite in [0, 3] {
        assert_eq!(Cipher::new(suite, &[0; 32]).err().unwrap().code(), "unsupported");
        assert!(RecordKey::new(suite, Zeroizing::new([0; 32]), Vec::new()).is_err());
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn what_was_sealed_opens_and_nothing_else_does(
        suite in 1..=2_u64,
        plaintext in prop::collection::vec(any::<u8>(), 0..300),
        flip in any::<prop::sample::Index>(),
    ) {
        let (mut sealer, mut opener) = pair(suite);
        let mut sealed = sealer.seal(&plaintext).unwrap();
        prop_assert_eq!(sealed.len(), plaintext.len() + TAG_BYTES);
        let at = flip.index(sealed.len());
        sealed[at] ^= 1;
        prop_assert!(opener.open(&sealed).is_err());
        sealed[at] ^= 1;
        prop_assert!(opener.open(&sealed[..at]).is_err());
        prop_assert_eq!(opener.open(&sealed).unwrap(), plaintext);
    }
}
