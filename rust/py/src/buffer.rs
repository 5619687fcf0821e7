//! Bytes that come in from Python and go out to it.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use zeroize::Zeroizing;

/// Work on fewer bytes than this, up to about 50 µs, is done without releasing the GIL: where other threads want it, it comes back
/// only after the interpreter's switch interval, 5 ms.
const DETACH_BYTES: usize = 32 * 1024;

/// The content of any buffer. `bytes` are immutable and used where they are; anything else is copied, since another
/// thread could change it while the GIL is released.
pub(crate) enum Input {
    /// A `bytes` object, kept alive.
    Shared(PyBackedBytes),
    /// A copy; erased, for it may be a secret.
    Copied(Zeroizing<Vec<u8>>),
}

impl<'py> FromPyObject<'_, 'py> for Input {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Self::Shared(bytes.to_owned().into()));
        }
        Ok(Self::Copied(Zeroizing::new(PyBuffer::<u8>::get(&object)?.to_vec(object.py())?)))
    }
}

impl std::ops::Deref for Input {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Copied(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Input {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Input {
    /// The content as an array; `name` says what had the wrong length.
    pub(crate) fn array<const N: usize>(&self, name: &str) -> PyResult<[u8; N]> {
        (**self).try_into().map_err(|_| PyValueError::new_err(format!("{name} has {N} bytes, not {}", self.len())))
    }

    /// A secret of 32 bytes, erased when it goes.
    pub(crate) fn secret(&self) -> PyResult<Zeroizing<[u8; 32]>> {
        self.array("a secret").map(Zeroizing::new)
    }
}

/// Runs `work`, without the GIL if it touches enough bytes.
pub(crate) fn without_gil<T: Send>(py: Python<'_>, bytes: usize, work: impl FnOnce() -> T + Send) -> T {
    if bytes < DETACH_BYTES { work() } else { py.detach(work) }
}

/// A new `bytes` object.
pub(crate) fn bytes<'py>(py: Python<'py>, data: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, data)
}
