//! BLAKE3 and `H(context, x)` of protocol.md, with the contexts of events and chains hashed once.

use std::sync::LazyLock;

use blake3::Hasher;
use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use subtle::ConstantTimeEq;

/// A BLAKE3 hash or a chain value.
pub type Hash = [u8; 32];

static EVENT_HASH: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context("keepstep/v1/event-hash"));
static CHAIN_0: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context("keepstep/v1/chain-0"));
static CHAIN: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context("keepstep/v1/chain"));

/// BLAKE3 of `data`.
pub fn blake3(data: &[u8]) -> Hash {
    *blake3::hash(data).as_bytes()
}

/// `H(context, data)`: BLAKE3 derive-key (protocol.md, introduction).
pub fn derive(context: &str, data: &[u8]) -> Hash {
    blake3::derive_key(context, data)
}

/// `hash = H("keepstep/v1/event-hash", header ‖ sig)` (protocol.md section 3).
pub fn event_hash(header: &[u8], signature: &[u8]) -> Hash {
    *Hasher::new_from_context_key(&EVENT_HASH).update(header).update(signature).finalize().as_bytes()
}

/// `chain_0 = H("keepstep/v1/chain-0", user_key ‖ stream)` (protocol.md section 3).
pub fn chain_0(user_key: &[u8; 32], stream: &str) -> Hash {
    *Hasher::new_from_context_key(&CHAIN_0).update(user_key).update(stream.as_bytes()).finalize().as_bytes()
}

/// `chain_s = H("keepstep/v1/chain", chain_{s-1} ‖ s ‖ received_at_ms ‖ hash_s)` (protocol.md section 3).
pub fn chain_next(chain: &Hash, seq: u64, received_at_ms: u64, hash: &Hash) -> Hash {
    let mut input = [0; 80];
    input[..32].copy_from_slice(chain);
    input[32..40].copy_from_slice(&seq.to_be_bytes());
    input[40..48].copy_from_slice(&received_at_ms.to_be_bytes());
    input[48..].copy_from_slice(hash);
    *Hasher::new_from_context_key(&CHAIN).update(&input).finalize().as_bytes()
}

/// Whether two byte strings are equal, in time that depends on their lengths only.
pub fn constant_time_equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
