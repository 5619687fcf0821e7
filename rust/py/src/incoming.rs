//! What a device's records say, for the hub and for whoever reads a stream.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keepstep_core::ed25519::PublicKey;
use keepstep_core::event::Signer;
use keepstep_core::incoming::{Author, Incoming, RecordReader as CoreReader};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::buffer::{Input, bytes, without_gil};
use crate::error::{OrRaise as _, exception};
use crate::events::Submission;
use crate::records::{Direction, RecordOpener};

/// A reader with its key, that the hub may use too. A panic while it is held leaves it as it was: the lock has no poison to heed.
#[derive(Clone)]
pub(crate) struct SharedRecords(Arc<(Mutex<CoreReader>, Direction)>);

impl SharedRecords {
    fn lock(&self) -> MutexGuard<'_, CoreReader> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next records were, in order.
    pub(crate) fn read(&self, records: impl IntoIterator<Item = Vec<u8>>) -> Vec<Incoming> {
        let (mut reader, mut key) = (self.lock(), self.0.1.key());
        records.into_iter().map_while(|record| reader.read(&mut key, record)).collect()
    }
}

/// As the stub documents them.
pub(crate) fn opened_list(py: Python<'_>, opened: Vec<Incoming>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for each in opened {
        match each {
            Incoming::Publish(rid, Ok(core)) => list.append((rid, Submission { core }))?,
            Incoming::Publish(rid, Err(error)) => list.append((rid, exception(py, error)))?,
            Incoming::Message(message) => list.append(bytes(py, &message))?,
            Incoming::Fault(error) => list.append(exception(py, error))?,
        }
    }
    Ok(list)
}

/// The records of one device's session.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct RecordReader(pub(crate) SharedRecords);

#[pymethods]
impl RecordReader {
    #[new]
    #[pyo3(signature = (
        opener, *, user_pk, user_key, device_pk, device_id, device_key, capabilities, events_max, payload_bytes_max,
        records_max
    ))]
    #[allow(clippy::too_many_arguments)] // keyword-only, as the stub documents them
    fn new(
        py: Python<'_>,
        opener: &RecordOpener,
        user_pk: i64,
        user_key: Input,
        device_pk: i64,
        device_id: Input,
        device_key: Input,
        capabilities: u64,
        events_max: usize,
        payload_bytes_max: usize,
        records_max: u64,
    ) -> PyResult<Self> {
        let signer = Arc::new(Signer {
            user_key: user_key.array("a user key")?,
            device_id: device_id.array("a device id")?,
            device_key: PublicKey::from_bytes(&device_key).or_raise(py)?,
        });
        let author = Author { user_pk, device_pk, signer, capabilities, events_max, payload_bytes_max };
        let reader = Mutex::new(CoreReader::new(author, records_max));
        Ok(Self(SharedRecords(Arc::new((reader, opener.0.clone())))))
    }

    fn read<'py>(&self, py: Python<'py>, records: Vec<Input>) -> PyResult<Bound<'py, PyList>> {
        let size = records.iter().map(|record| record.len()).sum();
        let opened = without_gil(py, size, || self.0.read(records.iter().map(|record| record.to_vec())));
        opened_list(py, opened)
    }
}
