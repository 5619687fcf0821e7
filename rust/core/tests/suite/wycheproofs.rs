//! Project Wycheproof's vectors, with the documented answer wherever ours differs from theirs on purpose.

use keepstep_core::aead::Cipher;
use keepstep_core::agreement::{HKDF_BYTES_MAX, hkdf_sha256, x25519};
use keepstep_core::ed25519::PublicKey;
use wycheproof::{TestResult, aead, eddsa, hkdf, xdh};

#[test]
fn ed25519_answers_are_theirs_without_exception() {
    let tests = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    let mut seen = 0;
    for group in tests.test_groups {
        for test in group.tests {
            let answer = PublicKey::from_bytes(&group.key.pk).and_then(|key| key.verify(&[&test.msg], &test.sig));
            assert_eq!(answer.is_ok(), test.result == TestResult::Valid, "{}: {}", test.tc_id, test.comment);
            seen += 1;
        }
    }
    assert!(seen >= 150, "{seen} tests");
}

/// "Acceptable" there are public keys on the twist, not canonical, or of low order. RFC 7748 section 5 demands that the first two
/// be computed with; an all-zero result, and only that, is refused (protocol.md section 1).
#[test]
fn x25519_answers_are_theirs_but_for_the_all_zero_result() {
    let tests = xdh::TestSet::load(xdh::TestName::X25519).unwrap();
    let mut refused = 0;
    for test in tests.test_groups.into_iter().flat_map(|group| group.tests) {
        let secret = test.private_key.as_slice().try_into().unwrap();
        let Ok(public) = <[u8; 32]>::try_from(test.public_key.as_slice()) else {
            assert_ne!(test.result, TestResult::Valid);
            continue;
        };
        assert_ne!(test.result, TestResult::Invalid, "{}", test.tc_id);
        match x25519(secret, &public) {
            Ok(shared) => assert_eq!(shared.as_slice(), test.shared_secret.as_slice(), "{}", test.tc_id),
            Err(error) => {
                assert_eq!(error.code(), "malformed");
                assert_eq!(test.shared_secret.as_slice(), [0; 32]);
                assert_eq!(test.result, TestResult::Acceptable);
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn hkdf_answers_are_theirs_without_exception() {
    let tests = hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap();
    for test in tests.test_groups.into_iter().flat_map(|group| group.tests) {
        match hkdf_sha256(&test.salt, &test.ikm, &test.info, test.size) {
            Ok(output) => assert_eq!(output.as_slice(), test.okm.as_slice(), "{}", test.tc_id),
            Err(_) => assert!(test.result.must_fail() && test.size > HKDF_BYTES_MAX, "{}", test.tc_id),
        }
    }
}

/// Key sizes and nonce sizes that no suite of the protocol has cannot be asked for: they are left out.
fn check_aead(suite: u64, name: aead::TestName) {
    let mut seen = 0;
    for group in aead::TestSet::load(name).unwrap().test_groups {
        if group.key_size != 256 || group.nonce_size != 96 || group.tag_size != 128 {
            continue;
        }
        for test in group.tests {
            let cipher = Cipher::new(suite, test.key.as_slice().try_into().unwrap()).unwrap();
            let nonce = test.nonce.as_slice().try_into().unwrap();
            let sealed = [test.ct.as_slice(), test.tag.as_slice()].concat();
            match cipher.open(nonce, &test.aad, &sealed) {
                Ok(plaintext) => {
                    assert_eq!(test.result, TestResult::Valid, "{}", test.tc_id);
                    assert_eq!(plaintext.as_slice(), test.pt.as_slice());
                    assert_eq!(cipher.seal(nonce, &test.aad, &plaintext).unwrap(), sealed);
                }
                Err(error) => {
                    assert_eq!(error.code(), "bad_record");
                    assert_eq!(test.result, TestResult::Invalid, "{}", test.tc_id);
                }
            }
            seen += 1;
        }
    }
    assert!(seen >= 60, "{seen} tests");
}

#[test]
fn aes_256_gcm_answers_are_theirs() {
    check_aead(1, aead::TestName::AesGcm);
}

#[test]
fn chacha20_poly1305_answers_are_theirs() {
    check_aead(2, aead::TestName::ChaCha20Poly1305);
}
