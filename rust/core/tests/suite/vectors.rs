//! The published vectors of `tests/vectors`, which the Python tests read too.

use keepstep_core::aead::Cipher;
use keepstep_core::agreement::{hkdf_sha256, hkdf_sha256_expand, x25519, x25519_public};
use keepstep_core::ed25519::{self, PublicKey};
use keepstep_core::hash;
use serde_json::Value;

use crate::support::unhex;

fn load(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn field(case: &Value, name: &str) -> Vec<u8> {
    unhex(case[name].as_str().unwrap())
}

fn array(case: &Value, name: &str) -> [u8; 32] {
    field(case, name).try_into().unwrap()
}

#[test]
fn rfc_8032_signatures_are_made_and_accepted() {
    let vectors = load(include_str!("../../../../tests/vectors/rfc8032.json"));
    for case in vectors["ed25519"].as_array().unwrap() {
        let (secret, message) = (array(case, "secret"), field(case, "message"));
        assert_eq!(ed25519::public(&secret), array(case, "public"));
        let signature = ed25519::sign(&secret, &message);
        assert_eq!(signature.to_vec(), field(case, "signature"));
        PublicKey::from_bytes(&field(case, "public")).unwrap().verify(&[&message], &signature).unwrap();
    }
}

#[test]
fn edge_signatures_have_their_documented_answer() {
    let vectors = load(include_str!("../../../../tests/vectors/taming_the_many_eddsas.json"));
    for case in vectors["cases"].as_array().unwrap() {
        let answer = PublicKey::from_bytes(&field(case, "public"))
            .and_then(|key| key.verify(&[&field(case, "message")], &field(case, "signature")));
        assert_eq!(answer.is_ok(), case["accepted"].as_bool().unwrap(), "{case}");
    }
}

#[test]
fn rfc_7748_secrets_are_agreed() {
    let vectors = load(include_str!("../../../../tests/vectors/rfc7748.json"));
    for case in vectors["x25519"].as_array().unwrap() {
        assert_eq!(*x25519(&array(case, "secret"), &array(case, "public")).unwrap(), array(case, "shared"));
    }
    let iterated = &vectors["iterated"];
    let (mut scalar, mut point) = (array(iterated, "start"), array(iterated, "start"));
    for round in 1..=1000 {
        (scalar, point) = (*x25519(&scalar, &point).unwrap(), scalar);
        if round == 1 {
            assert_eq!(scalar, array(iterated, "after_1"));
        }
    }
    assert_eq!(scalar, array(iterated, "after_1000"));
}

#[test]
fn the_public_key_of_a_secret_is_its_product_with_nine() {
    let mut nine = [0; 32];
    nine[0] = 9;
    assert_eq!(x25519_public(&[7; 32]), *x25519(&[7; 32], &nine).unwrap());
}

#[test]
fn rfc_5869_keys_are_derived() {
    let vectors = load(include_str!("../../../../tests/vectors/rfc5869.json"));
    for case in vectors["hkdf_sha256"].as_array().unwrap() {
        let (salt, ikm, info, okm) = (field(case, "salt"), field(case, "ikm"), field(case, "info"), field(case, "okm"));
        assert_eq!(*hkdf_sha256(&salt, &ikm, &info, okm.len()).unwrap(), okm);
        assert_eq!(*hkdf_sha256_expand(&field(case, "prk"), &info, okm.len()).unwrap(), okm);
    }
}

#[test]
fn hkdf_lengths_outside_the_rfc_are_refused() {
    for length in [0, 8161] {
        assert_eq!(hkdf_sha256(b"", b"", b"", length).unwrap_err().code(), "internal");
    }
    assert_eq!(hkdf_sha256(b"", b"", b"", 8160).unwrap().len(), 8160);
    assert!(hkdf_sha256_expand(&[0; 31], b"", 32).is_err());
}

#[test]
fn rfc_8439_text_is_sealed_and_opened() {
    let vectors = load(include_str!("../../../../tests/vectors/rfc8439.json"));
    for case in vectors["chacha20_poly1305"].as_array().unwrap() {
        let cipher = Cipher::new(2, &array(case, "key")).unwrap();
        let nonce = field(case, "nonce").try_into().unwrap();
        let (aad, plaintext, sealed) = (field(case, "aad"), field(case, "plaintext"), field(case, "sealed"));
        assert_eq!(cipher.seal(&nonce, &aad, &plaintext).unwrap(), sealed);
        assert_eq!(cipher.open(&nonce, &aad, &sealed).unwrap(), plaintext);
    }
}

#[test]
fn blake3_vectors_are_met() {
    let vectors = load(include_str!("../../../../tests/vectors/blake3.json"));
    let context = vectors["context"].as_str().unwrap();
    for case in vectors["cases"].as_array().unwrap() {
        let length = usize::try_from(case["input_len"].as_u64().unwrap()).unwrap();
        let input: Vec<u8> = (0..=250).cycle().take(length).collect();
        assert_eq!(hash::blake3(&input), array(case, "hash"));
        assert_eq!(hash::derive(context, &input), array(case, "derive_key"));
    }
}

#[test]
fn event_hashes_and_chains_are_derive_key_of_the_concatenation() {
    let (header, signature) = (b"header".as_slice(), [5; 64]);
    let hashed = hash::event_hash(header, &signature);
    assert_eq!(hashed, hash::derive("keepstep/v1/event-hash", &[header, &signature].concat()));
    let start = hash::chain_0(&[1; 32], "notes");
    assert_eq!(start, hash::derive("keepstep/v1/chain-0", &[[1; 32].as_slice(), b"notes"].concat()));
    let input = [start.as_slice(), &7_u64.to_be_bytes(), &9_u64.to_be_bytes(), &hashed].concat();
    assert_eq!(hash::chain_next(&start, 7, 9, &hashed), hash::derive("keepstep/v1/chain", &input));
}

#[test]
fn constant_time_comparison_tells_equal_from_different() {
    assert!(hash::constant_time_equal(b"abc", b"abc"));
    assert!(!hash::constant_time_equal(b"abc", b"abd"));
    assert!(!hash::constant_time_equal(b"abc", b"ab"));
}
