//! Ed25519 keys, signing and single verification by the server's rule (protocol.md section 1, "Ed25519 rule").
//!
//! ZIP-215 (the cofactored equation), narrowed to canonical encodings of key, R and s and to public keys that are not of
//! small order. The cofactored equation is what makes single and batch verification agree on every input.

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest, Sha512};

use crate::error::{Error, Result};

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// 2^255 - 19, little-endian, without its lowest and highest byte, which differ from the rest.
const FIELD_PRIME_LOW_BYTE: u8 = 0xed;

/// The curve25519 backend that this processor runs: `avx512`, `avx2` or `serial`.
pub fn backend() -> &'static str {
    #[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
    {
        if cfg!(curve25519_dalek_backend = "avx512")
            && std::arch::is_x86_feature_detected!("avx512ifma")
            && std::arch::is_x86_feature_detected!("avx512vl")
        {
            return "avx512";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "avx2";
        }
    }
    "serial"
}

/// The public key of a secret seed (RFC 8032 section 5.1.5).
pub fn public(secret: &[u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(secret).verifying_key().to_bytes()
}

/// A signature (RFC 8032 section 5.1.6).
pub fn sign(secret: &[u8; 32], message: &[u8]) -> [u8; SIGNATURE_BYTES] {
    SigningKey::from_bytes(secret).sign(message).to_bytes()
}

/// A public key, checked and decompressed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    bytes: [u8; 32],
    point: EdwardsPoint,
}

impl PublicKey {
    /// Refuses what is not 32 bytes, not canonical, not on the curve, or of small order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| Error::Malformed("an Ed25519 key has 32 bytes"))?;
        let point = decompress_canonical(&bytes).ok_or(Error::Malformed("not a canonical point of the curve"))?;
        if point.is_small_order() {
            return Err(Error::Malformed("the Ed25519 key is of small order"));
        }
        Ok(Self { bytes, point })
    }

    /// The 32 bytes it was made from.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    pub(crate) fn point(&self) -> &EdwardsPoint {
        &self.point
    }

    /// Checks one signature over the concatenation of `message`.
    pub fn verify(&self, message: &[&[u8]], signature: &[u8]) -> Result<()> {
        let statement = Statement::new(self, message, signature).ok_or(Error::BadSignature)?;
        if statement.holds(self) { Ok(()) } else { Err(Error::BadSignature) }
    }
}

/// A signature, decoded: it is good where `[8](sB - R - kA)` is the identity.
pub(crate) struct Statement {
    pub(crate) r: EdwardsPoint,
    pub(crate) s: Scalar,
    pub(crate) k: Scalar,
}

impl Statement {
    /// `None` where R or s is not canonical or R is not on the curve.
    pub(crate) fn new(key: &PublicKey, message: &[&[u8]], signature: &[u8]) -> Option<Self> {
        let signature: &[u8; SIGNATURE_BYTES] = signature.try_into().ok()?;
        let (r_bytes, s_bytes) = (signature.first_chunk::<32>()?, signature.last_chunk::<32>()?);
        let s = Option::from(Scalar::from_canonical_bytes(*s_bytes))?;
        let r = decompress_canonical(r_bytes)?;
        let mut challenge = Sha512::new_with_prefix(r_bytes);
        challenge.update(key.as_bytes());
        for part in message {
            challenge.update(part);
        }
        let k = Scalar::from_bytes_mod_order_wide(&challenge.finalize().into());
        Some(Self { r, s, k })
    }

    /// The equation, alone.
    pub(crate) fn holds(&self, key: &PublicKey) -> bool {
        let expected_r = EdwardsPoint::vartime_double_scalar_mul_basepoint(&self.k, &-key.point(), &self.s);
        is_zero_times_cofactor(&(expected_r - self.r))
    }
}

/// Whether `[8]point` is the identity.
pub(crate) fn is_zero_times_cofactor(point: &EdwardsPoint) -> bool {
    point.mul_by_cofactor().is_identity()
}

/// The point of a canonical encoding: y below the field's prime, and no sign on x = 0 (RFC 8032 section 5.1.3).
fn decompress_canonical(bytes: &[u8; 32]) -> Option<EdwardsPoint> {
    if !is_canonical(bytes) {
        return None;
    }
    CompressedEdwardsY(*bytes).decompress()
}

fn is_canonical(bytes: &[u8; 32]) -> bool {
    let (sign, top) = (bytes[31] >> 7, bytes[31] & 0x7f);
    let middle = &bytes[1..31];
    let all_ones = top == 0x7f && middle.iter().all(|&byte| byte == 0xff);
    if all_ones && bytes[0] >= FIELD_PRIME_LOW_BYTE {
        return false;
    }
    // x is 0 exactly where y is 1 or -1.
    let y_is_one = bytes[0] == 1 && top == 0 && middle.iter().all(|&byte| byte == 0);
    let y_is_minus_one = all_ones && bytes[0] == FIELD_PRIME_LOW_BYTE - 1;
    sign == 0 || !(y_is_one || y_is_minus_one)
}
