//! Turns the core's errors into Python's.

use keepstep_core::Error;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

static PROTOCOL_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// `keepstep.errors.ProtocolError` for what a peer did, `ValueError` for what the caller did.
fn raise(py: Python<'_>, error: Error) -> PyErr {
    if let Error::Argument(detail) = error {
        return PyValueError::new_err(detail);
    }
    let raised = PROTOCOL_ERROR
        .import(py, "keepstep.errors", "ProtocolError")
        .and_then(|class| class.call1((error.code(), error.detail())));
    match raised {
        Ok(exception) => PyErr::from_value(exception),
        Err(failure) => failure,
    }
}

/// The same as a value, to be handed over in its place.
pub(crate) fn exception(py: Python<'_>, error: Error) -> Bound<'_, PyAny> {
    raise(py, error).into_value(py).into_bound(py).into_any()
}

/// `?` for results of the core.
pub(crate) trait OrRaise<T> {
    /// The value, or the Python exception of the error.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for keepstep_core::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raise(py, error))
    }
}
