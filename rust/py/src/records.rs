//! One direction's records of a session.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keepstep_core::Result as CoreResult;
use keepstep_core::aead::{RecordKey, TAG_BYTES};
use keepstep_core::websocket::{begin_message, frame_message};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, bytes, without_gil};
use crate::error::OrRaise;

/// The key behind a lock, which the extension's hub may use too. A panic while it is held leaves the counter where it was, so the lock
/// has no poison to heed.
#[derive(Clone)]
pub(crate) struct Direction(Arc<Mutex<RecordKey>>);

impl Direction {
    fn new(py: Python<'_>, suite: u64, secret: &Input, aad: &Input) -> PyResult<Self> {
        let key = RecordKey::new(suite, secret.secret()?, aad.to_vec()).or_raise(py)?;
        Ok(Self(Arc::new(Mutex::new(key))))
    }

    pub(crate) fn key(&self) -> MutexGuard<'_, RecordKey> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One direction's sealing key and counter.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct RecordSealer(pub(crate) Direction);

#[pymethods]
impl RecordSealer {
    #[new]
    fn new(py: Python<'_>, suite: u64, secret: Input, aad: Input) -> PyResult<Self> {
        Direction::new(py, suite, &secret, &aad).map(Self)
    }

    fn seal<'py>(&self, py: Python<'py>, plaintext: Input) -> PyResult<Bound<'py, PyBytes>> {
        let sealed = without_gil(py, plaintext.len(), || self.0.key().seal(&plaintext)).or_raise(py)?;
        Ok(bytes(py, &sealed))
    }

    fn seal_many<'py>(&self, py: Python<'py>, plaintexts: Vec<Input>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let sealed = without_gil(py, total(&plaintexts), || {
            let mut key = self.0.key();
            plaintexts.iter().map(|plaintext| key.seal(plaintext)).collect::<Result<Vec<_>, _>>()
        })
        .or_raise(py)?;
        Ok(sealed.iter().map(|sealed| bytes(py, sealed)).collect())
    }

    #[getter]
    fn records(&self) -> u64 {
        self.0.key().records()
    }

    fn rekey(&self, py: Python<'_>) -> PyResult<()> {
        self.0.key().rekey().or_raise(py)
    }
}

/// One direction's opening key and counter.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct RecordOpener(pub(crate) Direction);

#[pymethods]
impl RecordOpener {
    #[new]
    fn new(py: Python<'_>, suite: u64, secret: Input, aad: Input) -> PyResult<Self> {
        Direction::new(py, suite, &secret, &aad).map(Self)
    }

    fn open<'py>(&self, py: Python<'py>, record: Input) -> PyResult<Bound<'py, PyBytes>> {
        let plaintext = without_gil(py, record.len(), || self.0.key().open(&record)).or_raise(py)?;
        Ok(bytes(py, &plaintext))
    }

    fn open_many<'py>(&self, py: Python<'py>, records: Vec<Input>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let plaintexts = without_gil(py, total(&records), || self.0.key().open_many(&records)).or_raise(py)?;
        Ok(plaintexts.iter().map(|plaintext| bytes(py, plaintext)).collect())
    }

    #[getter]
    fn records(&self) -> u64 {
        self.0.key().records()
    }

    fn rekey(&self, py: Python<'_>) -> PyResult<()> {
        self.0.key().rekey().or_raise(py)
    }
}

/// Adds messages as frames, each a record of the sealer's where there is one; behind a `None` it goes on under its next secret.
pub(crate) fn add_frames(
    sealer: Option<&Direction>,
    messages: &[Option<Input>],
    output: &mut Vec<u8>,
) -> CoreResult<()> {
    let Some(direction) = sealer else {
        messages.iter().flatten().for_each(|message| frame_message(message, output));
        return Ok(());
    };
    let mut key = direction.key();
    for message in messages {
        match message {
            Some(plaintext) => {
                begin_message(plaintext.len() + TAG_BYTES, output);
                key.seal_into(plaintext, output)?;
            }
            None => key.rekey()?,
        }
    }
    Ok(())
}

fn total(inputs: &[Input]) -> usize {
    inputs.iter().map(|input| input.len()).sum()
}
