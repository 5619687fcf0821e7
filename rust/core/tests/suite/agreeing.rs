//! Key agreement against RFC 7748's ladder, as x25519-dalek has it.

use keepstep_core::agreement::x25519;
use proptest::prelude::*;

use crate::support::cases;

proptest! {
    #![proptest_config(cases(256))]

    /// Half of all public keys are points of the curve, and half of its twist.
    #[test]
    fn shared_secrets_are_the_ladders(secret in any::<[u8; 32]>(), public in any::<[u8; 32]>()) {
        prop_assert_eq!(*x25519(&secret, &public).unwrap(), x25519_dalek::x25519(secret, public));
    }
}
