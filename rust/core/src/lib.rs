//! keepstep's cryptography, event encoding and batch ingest, without Python.
//!
//! Names and numbers of sections refer to `docs/reference/protocol.md`. Nothing here reads a clock; the only randomness is that of the
//! batch equation's coefficients, which must be fresh from the operating system.

#![deny(unsafe_code)]

pub mod aead;
pub mod agreement;
pub mod answers;
pub mod batch;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
#[allow(unsafe_code)]
mod coordinates;
pub mod copy;
pub mod decompression;
pub mod ed25519;
pub mod error;
pub mod event;
pub mod flight;
pub mod hash;
pub mod head;
pub mod header;
pub mod incoming;
pub mod ingest;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
#[allow(unsafe_code)]
mod lanes;
pub mod msgpack;
pub mod multiscalar;
pub mod policy;
pub mod recent;
pub mod remembered;
pub mod rooms;
pub mod run;
pub mod sha512;
pub mod websocket;

pub use error::{Error, Result};
