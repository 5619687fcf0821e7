//! X25519 (RFC 7748) and HKDF-SHA-256 (RFC 5869).

use curve25519_dalek::montgomery::MontgomeryPoint;
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Longest output of one HKDF expansion, bytes (RFC 5869 section 2.3: 255 blocks of 32).
pub const HKDF_BYTES_MAX: usize = 255 * 32;

/// The public key of a secret (RFC 7748 section 6.1).
pub fn x25519_public(secret: &[u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*secret)).to_bytes()
}

/// The shared secret; the all-zero result of a peer's low-order point is refused (RFC 7748 section 6.1).
///
/// A point of the curve is multiplied in its Edwards form, whose arithmetic goes several numbers at a time, in a time that does not
/// depend on the secret; one of the twist, which has no such form here, goes up RFC 7748's ladder. Which of both it is only the public
/// key decides.
pub fn x25519(secret: &[u8; 32], public: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>> {
    let public = MontgomeryPoint(*public);
    let shared = match public.to_edwards(0) {
        Some(point) => point.mul_clamped(*secret).to_montgomery(),
        None => public.mul_clamped(*secret),
    };
    let shared = Zeroizing::new(shared.to_bytes());
    if bool::from(shared.ct_eq(&[0; 32])) {
        return Err(Error::Malformed("the X25519 result is all zero"));
    }
    Ok(shared)
}

/// Extract and expand in one.
pub fn hkdf_sha256(salt: &[u8], ikm: &[u8], info: &[u8], length: usize) -> Result<Zeroizing<Vec<u8>>> {
    expand(&Hkdf::<Sha256>::new(Some(salt), ikm), info, length)
}

/// Expand alone; `prk` has at least 32 bytes.
pub fn hkdf_sha256_expand(prk: &[u8], info: &[u8], length: usize) -> Result<Zeroizing<Vec<u8>>> {
    let key = Hkdf::<Sha256>::from_prk(prk).map_err(|_| Error::Argument("the HKDF key is shorter than 32 bytes"))?;
    expand(&key, info, length)
}

fn expand(key: &Hkdf<Sha256>, info: &[u8], length: usize) -> Result<Zeroizing<Vec<u8>>> {
    let out_of_range = Error::Argument("the HKDF length is not in 1..=8160 bytes");
    if !(1..=HKDF_BYTES_MAX).contains(&length) {
        return Err(out_of_range);
    }
    let mut output = Zeroizing::new(vec![0; length]);
    key.expand(info, &mut output).map_err(|_| out_of_range)?;
    Ok(output)
}
