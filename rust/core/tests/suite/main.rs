//! What the core crate promises, checked against published vectors, independent formulas and its own inverses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agreeing;
mod batches;
mod codec;
mod decompressing;
mod errors;
mod events;
mod hashing;
mod heads;
mod incoming;
mod ingesting;
mod policies;
mod quotas;
mod records;
mod runs;
mod summing;
mod support;
mod vectors;
mod websockets;
mod wycheproofs;
