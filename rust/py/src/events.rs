//! Events of a publish, the device that sends them, and rows that come from the database.

use std::sync::Arc;

use keepstep_core::event::{Bytes, Events as CoreEvents, Parsed, Signer};
use keepstep_core::hash::{chain_0, chain_next, event_hash};
use keepstep_core::ingest::Submission as CoreSubmission;
use keepstep_core::run::WireRow;
use keepstep_core::{Error, Result as CoreResult};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, bytes, without_gil};
use crate::error::OrRaise;
use crate::primitives::DeviceKey;

/// One event of a publish, parsed.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct ParsedEvent {
    events: Arc<CoreEvents>,
    index: usize,
}

impl ParsedEvent {
    fn parsed(&self, py: Python<'_>) -> PyResult<&Parsed> {
        self.events.parsed(self.index).or_raise(py)
    }

    fn received(&self) -> Bytes<'_> {
        self.events.bytes(self.index)
    }
}

type PyPosition<'py> = (u64, Bound<'py, PyBytes>);

#[pymethods]
impl ParsedEvent {
    #[getter]
    fn kind(&self, py: Python<'_>) -> PyResult<u8> {
        Ok(self.parsed(py)?.kind.number())
    }

    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.parsed(py)?.id))
    }

    #[getter]
    fn stream(&self, py: Python<'_>) -> PyResult<&str> {
        Ok(&self.events.streams()[self.parsed(py)?.stream])
    }

    #[getter]
    fn n(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.parsed(py)?.n)
    }

    #[getter]
    fn prev<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.parsed(py)?.prev))
    }

    #[getter]
    fn seen<'py>(&self, py: Python<'py>) -> PyResult<PyPosition<'py>> {
        let (seq, chain) = &self.parsed(py)?.seen;
        Ok((*seq, bytes(py, chain)))
    }

    #[getter]
    fn devices_seen<'py>(&self, py: Python<'py>) -> PyResult<PyPosition<'py>> {
        let (seq, chain) = &self.parsed(py)?.devices_seen;
        Ok((*seq, bytes(py, chain)))
    }

    #[getter]
    fn key<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        Ok(self.parsed(py)?.key.map(|key| bytes(py, &key)))
    }

    #[getter]
    fn hlc(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.parsed(py)?.hlc)
    }

    #[getter]
    fn ttl_s(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        Ok(self.parsed(py)?.ttl_s)
    }

    #[getter]
    fn header<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, self.received().header)
    }

    #[getter]
    fn sig<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, self.received().signature)
    }

    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, self.received().payload.unwrap_or_default())
    }

    #[getter]
    fn payload_dropped(&self) -> bool {
        self.received().payload.is_none()
    }

    #[getter]
    fn trace<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.received().trace.map(|trace| bytes(py, trace))
    }

    #[getter]
    fn hash<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.parsed(py)?.hash))
    }
}

/// The events of one publish message, parsed in one pass.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct Events(pub(crate) Arc<CoreEvents>);

#[pymethods]
impl Events {
    #[staticmethod]
    #[pyo3(signature = (raw, *, events_max, payload_bytes_max, payloads_may_be_missing = false))]
    fn parse(
        py: Python<'_>,
        raw: Input,
        events_max: usize,
        payload_bytes_max: usize,
        payloads_may_be_missing: bool,
    ) -> PyResult<Self> {
        let read = if payloads_may_be_missing { CoreEvents::parse_stored } else { CoreEvents::parse };
        let parse = || read(Arc::from(&*raw), events_max, payload_bytes_max);
        Ok(Self(Arc::new(without_gil(py, raw.len(), parse).or_raise(py)?)))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    #[getter]
    fn payload_bytes(&self) -> usize {
        self.0.payload_bytes()
    }

    #[getter]
    fn streams(&self) -> Vec<&str> {
        self.0.streams().iter().map(|name| &**name).collect()
    }

    #[getter]
    fn kinds(&self) -> Vec<u32> {
        self.0.kinds().into_iter().map(|kind| u32::from(kind.number())).collect()
    }

    #[getter]
    fn devices_seen<'py>(&self, py: Python<'py>) -> Vec<PyPosition<'py>> {
        self.0.devices_seen().iter().map(|(seq, chain)| (*seq, bytes(py, chain))).collect()
    }

    #[getter]
    fn checked_apart(&self) -> bool {
        self.0.checked_apart()
    }

    fn split(&self) -> Vec<Self> {
        self.0.split().into_iter().map(|events| Self(Arc::new(events))).collect()
    }

    fn event(&self, py: Python<'_>, index: usize) -> PyResult<ParsedEvent> {
        if index >= self.0.len() {
            return Err(PyIndexError::new_err("no such event"));
        }
        self.0.parsed(index).or_raise(py)?;
        Ok(ParsedEvent { events: Arc::clone(&self.0), index })
    }
}

/// Events with the device that sent them.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct Submission {
    pub(crate) core: CoreSubmission,
}

#[pymethods]
impl Submission {
    #[new]
    #[pyo3(signature = (
        *, user_pk, user_key, device_pk, device_id, device_key, capabilities, events, suspect = false, anew = false
    ))]
    #[allow(clippy::too_many_arguments)] // keyword-only, as the stub documents them
    fn new(
        user_pk: i64,
        user_key: Input,
        device_pk: i64,
        device_id: Input,
        device_key: Py<DeviceKey>,
        capabilities: u64,
        events: Py<Events>,
        suspect: bool,
        anew: bool,
    ) -> PyResult<Self> {
        let signer = Signer {
            user_key: user_key.array("a user key")?,
            device_id: device_id.array("a device id")?,
            device_key: device_key.get().0.clone(),
        };
        let core = CoreSubmission {
            user_pk,
            device_pk,
            signer: Arc::new(signer),
            capabilities,
            suspect,
            anew,
            events: Arc::clone(&events.get().0),
        };
        Ok(Self { core })
    }

    #[getter]
    fn user_pk(&self) -> i64 {
        self.core.user_pk
    }

    #[getter]
    fn device_pk(&self) -> i64 {
        self.core.device_pk
    }

    #[getter]
    fn device_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.core.signer.device_id)
    }

    #[getter]
    fn capabilities(&self) -> u64 {
        self.core.capabilities
    }

    #[getter]
    fn events(&self) -> Events {
        Events(Arc::clone(&self.core.events))
    }

    fn __len__(&self) -> usize {
        self.core.events.len()
    }

    #[getter]
    fn payload_bytes(&self) -> usize {
        self.core.events.payload_bytes()
    }

    #[getter]
    fn has_reserved(&self) -> bool {
        self.core.events.has_reserved()
    }

    #[getter]
    fn weight(&self) -> (usize, usize, bool) {
        (self.core.events.held_bytes(), self.core.events.len(), self.has_reserved())
    }

    fn with_events(&self, events: Py<Events>) -> Self {
        Self { core: CoreSubmission { events: Arc::clone(&events.get().0), ..self.core.clone() } }
    }

    fn with_capabilities(&self, capabilities: u64) -> Self {
        Self { core: CoreSubmission { capabilities, ..self.core.clone() } }
    }

    fn as_suspect(&self) -> Self {
        Self { core: CoreSubmission { suspect: true, ..self.core.clone() } }
    }
}

type StoredRow = (u64, Input, u64, Input, Input, Option<Input>);

#[pyfunction]
pub(crate) fn encode_rows<'py>(py: Python<'py>, rows: Vec<StoredRow>) -> PyResult<Bound<'py, PyBytes>> {
    let encode = || -> CoreResult<Vec<u8>> {
        let mut output = Vec::new();
        for (seq, device_id, received_at_ms, header, signature, payload) in &rows {
            WireRow {
                seq: *seq,
                device_id: (**device_id).try_into().map_err(|_| Error::Argument("a device id has 16 bytes"))?,
                received_at_ms: *received_at_ms,
                header,
                signature,
                payload: payload.as_deref(),
                trace: None,
            }
            .write(&mut output)?;
        }
        Ok(output)
    };
    let encoded = py.detach(encode).or_raise(py)?;
    Ok(bytes(py, &encoded))
}

#[pyfunction]
pub(crate) fn verify_chain<'py>(
    py: Python<'py>,
    user_key: Input,
    stream: &str,
    seq: u64,
    chain: Input,
    rows: Vec<(u64, u64, Input, Input)>,
) -> PyResult<Bound<'py, PyBytes>> {
    let (user_key, start) = (user_key.array("a user key")?, chain.array("a chain")?);
    let end = py.detach(|| {
        if seq == 0 && start != chain_0(&user_key, stream) {
            return Err(Error::Malformed("the chain does not start at chain_0"));
        }
        rows.iter().try_fold((seq, start), |(seq, chain), (row_seq, received_at_ms, header, signature)| {
            if seq.checked_add(1) != Some(*row_seq) {
                return Err(Error::Malformed("the rows do not follow one another"));
            }
            Ok((*row_seq, chain_next(&chain, *row_seq, *received_at_ms, &event_hash(header, signature))))
        })
    });
    let (_, chain) = end.or_raise(py)?;
    Ok(bytes(py, &chain))
}
