//! WebSocket frames of one peer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use keepstep_core::websocket::{self, End, FrameReader as CoreReader, Received};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, bytes, without_gil};
use crate::error::OrRaise;
use crate::records::{RecordSealer, add_frames};

/// What the stub calls the ways in which messages end.
pub(crate) const fn end_name(end: End) -> &'static str {
    match end {
        End::Closed => "closed",
        End::Broken => "broken",
        End::TooLarge => "too_large",
        End::Malformed => "malformed",
    }
}

type Fed<'py> = (Vec<Bound<'py, PyBytes>>, Bound<'py, PyBytes>, Option<&'static str>);

/// A peer's frames.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct FrameReader(Mutex<CoreReader>);

impl FrameReader {
    /// A panic while it is held leaves the reader as it was: the lock has no poison to heed.
    fn lock(&self) -> MutexGuard<'_, CoreReader> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl FrameReader {
    #[new]
    fn new(message_bytes_max: usize) -> Self {
        Self(Mutex::new(CoreReader::new(message_bytes_max)))
    }

    fn limit(&self, message_bytes_max: usize) {
        self.lock().limit(message_bytes_max);
    }

    fn feed<'py>(&self, py: Python<'py>, data: Input) -> Fed<'py> {
        let mut received = Received::default();
        let end = without_gil(py, data.len(), || self.lock().feed(&data, &mut received));
        let messages = received.messages.iter().map(|message| bytes(py, message)).collect();
        (messages, bytes(py, &received.replies), end.map(end_name))
    }
}

/// Messages as frames, one after the other.
#[pyfunction]
#[pyo3(signature = (messages, sealer=None))]
pub(crate) fn frame_many<'py>(
    py: Python<'py>,
    messages: Vec<Option<Input>>,
    sealer: Option<&Bound<'py, RecordSealer>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let sealer = sealer.map(|sealer| &sealer.get().0);
    let size = messages.iter().flatten().map(|message| message.len()).sum();
    let mut output = Vec::new();
    without_gil(py, size, || add_frames(sealer, &messages, &mut output)).or_raise(py)?;
    Ok(bytes(py, &output))
}

/// A close frame.
#[pyfunction]
pub(crate) fn frame_close<'py>(py: Python<'py>, code: u16, reason: &str) -> Bound<'py, PyBytes> {
    let mut output = Vec::new();
    websocket::frame_close(code, reason, &mut output);
    bytes(py, &output)
}
