//! Ed25519 keys, signing and single verification by the server's rule (protocol.md section 1, "Ed25519 rule").
//!
//! ZIP-215 (the cofactored equation), narrowed to canonical encodings of key, R and s and to public keys that are not of
//! small order. The cofactored equation is what makes single and batch verification agree on every input.

use std::sync::OnceLock;

use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use ed25519_dalek::{Signer as _, SigningKey};

use crate::decompression::decompress;
use crate::error::{Error, Result};
use crate::multiscalar::upper_half;
use crate::sha512::{SHA512_BYTES, sha512};

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

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
    SecretKey::new(secret).public()
}

/// A signature (RFC 8032 section 5.1.6).
pub fn sign(secret: &[u8; 32], message: &[u8]) -> [u8; SIGNATURE_BYTES] {
    SecretKey::new(secret).sign(message)
}

/// A secret key, expanded once, with its public key. Erased when it goes.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// Of a secret seed.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The public key (RFC 8032 section 5.1.5).
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// A signature (RFC 8032 section 5.1.6).
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(message).to_bytes()
    }
}

/// A public key, checked and decompressed once.
#[derive(Clone, Debug)]
pub struct PublicKey {
    bytes: [u8; 32],
    point: EdwardsPoint,
    /// 2^128 times `point`, once a merged equation needed it: a device that publishes nothing holds none.
    upper: OnceLock<Box<EdwardsPoint>>,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for PublicKey {}

impl PublicKey {
    /// Refuses what is not 32 bytes, not canonical, not on the curve, or of small order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| Error::Malformed("an Ed25519 key has 32 bytes"))?;
        let point = decompress(&bytes).ok_or(Error::Malformed("not a canonical point of the curve"))?;
        if point.is_small_order() {
            return Err(Error::Malformed("the Ed25519 key is of small order"));
        }
        Ok(Self { bytes, point, upper: OnceLock::new() })
    }

    /// The 32 bytes it was made from.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    pub(crate) fn point(&self) -> &EdwardsPoint {
        &self.point
    }

    /// 2^128 times the point.
    pub(crate) fn upper(&self) -> &EdwardsPoint {
        self.upper.get_or_init(|| Box::new(upper_half(&self.point)))
    }

    /// Checks one signature over the concatenation of `message`.
    pub fn verify(&self, message: &[&[u8]], signature: &[u8]) -> Result<()> {
        let signature = signature.try_into().map_err(|_| Error::BadSignature)?;
        let r = decompress(r_bytes(signature)).ok_or(Error::BadSignature)?;
        let challenge = sha512([&r_bytes(signature)[..], self.as_bytes()].into_iter().chain(message.iter().copied()));
        let statement = Statement::new(signature, r, &challenge).ok_or(Error::BadSignature)?;
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
    /// `r` is the point that the signature begins with, `challenge` the hash of R, the key and the message. `None` where s is not
    /// canonical.
    pub(crate) fn new(
        signature: &[u8; SIGNATURE_BYTES],
        r: EdwardsPoint,
        challenge: &[u8; SHA512_BYTES],
    ) -> Option<Self> {
        let s = Option::from(Scalar::from_canonical_bytes(*signature.last_chunk()?))?;
        Some(Self { r, s, k: Scalar::from_bytes_mod_order_wide(challenge) })
    }

    /// The equation, alone.
    pub(crate) fn holds(&self, key: &PublicKey) -> bool {
        let expected_r = EdwardsPoint::vartime_double_scalar_mul_basepoint(&self.k, &-key.point(), &self.s);
        is_zero_times_cofactor(&(expected_r - self.r))
    }
}

/// R as encoded.
pub(crate) fn r_bytes(signature: &[u8; SIGNATURE_BYTES]) -> &[u8; 32] {
    let (halves, _) = signature.as_chunks::<32>();
    &halves[0]
}

/// Whether `[8]point` is the identity.
pub(crate) fn is_zero_times_cofactor(point: &EdwardsPoint) -> bool {
    point.mul_by_cofactor().is_identity()
}
