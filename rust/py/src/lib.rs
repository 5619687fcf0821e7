//! The Python extension `keepstep._keepstep`: converts and releases the GIL, nothing else.
//!
//! What it offers is documented in `python/keepstep/_keepstep.pyi`.

// Only borrowing a descriptor from Python is not safe, and says why it is.
#![deny(unsafe_code)]
// PyO3 hands arguments over by value, and its convention is to name the lifetime 'py throughout.
#![allow(clippy::needless_pass_by_value, clippy::elidable_lifetime_names)]

mod buffer;
#[cfg(unix)]
mod commits;
mod error;
mod events;
#[cfg(unix)]
mod flight;
#[cfg(target_os = "linux")]
mod hub;
mod incoming;
mod ingest;
mod primitives;
mod records;
mod remembered;
#[cfg(target_os = "linux")]
mod stage;
mod unfinished;
mod websocket;

/// What one thread allocates another one frees: the C library's malloc is slow at that (ADR 0380).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The module as Python sees it.
#[pyo3::pymodule]
mod _keepstep {
    #[cfg(unix)]
    #[pymodule_export]
    use crate::commits::Committer;
    #[pymodule_export]
    use crate::events::{Events, ParsedEvent, Submission, encode_rows, verify_chain};
    #[cfg(unix)]
    #[pymodule_export]
    use crate::flight::Flight;
    #[cfg(target_os = "linux")]
    #[pymodule_export]
    use crate::hub::SocketHub;
    #[pymodule_export]
    use crate::incoming::RecordReader;
    #[pymodule_export]
    use crate::ingest::{Ingested, Run, StreamHead, ingest};
    #[pymodule_export]
    use crate::primitives::{
        DeviceKey, SigningKey, aead_open, aead_seal, blake3, blake3_derive, constant_time_equal, ed25519_generate,
        ed25519_public, ed25519_sign, ed25519_verify, ed25519_verify_many, hkdf_sha256, hkdf_sha256_expand, x25519,
        x25519_public,
    };
    #[pymodule_export]
    use crate::records::{RecordOpener, RecordSealer};
    #[pymodule_export]
    use crate::remembered::{RememberedAccounts, RememberedHeads};
    #[pymodule_export]
    use crate::websocket::{FrameReader, frame_close, frame_many};

    #[pymodule_export]
    const AUTHORS_PACKED_MAX: usize = keepstep_core::head::AUTHORS_PACKED_MAX;
    #[pymodule_export]
    const SOURCE_DIGEST: &str = env!("KEEPSTEP_SOURCE_DIGEST");

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        use pyo3::types::PyModuleMethods as _;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("BACKEND", keepstep_core::ed25519::backend())
    }
}
