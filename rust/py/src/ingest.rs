//! Heads, runs, and the one call that takes a batch to what is stored and sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use keepstep_core::Error;
use keepstep_core::answers;
use keepstep_core::copy;
use keepstep_core::head::{Author, StreamHead as CoreHead};
use keepstep_core::ingest::{Answer, Ingested as CoreIngested, Keyed, Plan, ingest as core_ingest};
use keepstep_core::policy::Policy;
use keepstep_core::rooms::Rooms;
use keepstep_core::run::Run as CoreRun;
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyMapping, PyTuple};

use crate::buffer::{Input, bytes};
use crate::error::OrRaise;
use crate::events::Submission;

/// One stream's head and its authors.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct StreamHead(pub(crate) Arc<CoreHead>);

#[pymethods]
impl StreamHead {
    #[staticmethod]
    #[pyo3(signature = (*, user_pk, user_key, stream_pk, name, retention_class, auth_epoch))]
    fn create(
        user_pk: i64,
        user_key: Input,
        stream_pk: i64,
        name: &str,
        retention_class: i16,
        auth_epoch: i64,
    ) -> PyResult<Self> {
        let user_key = user_key.array("a user key")?;
        Ok(Self(Arc::new(CoreHead::create(user_pk, &user_key, stream_pk, name, retention_class, auth_epoch))))
    }

    #[staticmethod]
    #[pyo3(signature = (
        *, user_pk, stream_pk, name, retention_class, policy = 0, ttl_max_s = None, bytes_max = None, stored_bytes = 0, seq,
        chain, received_at_ms, auth_epoch, authors_packed, authors = Vec::new()
    ))]
    #[allow(clippy::too_many_arguments)] // keyword-only, as the stub documents them
    fn load(
        py: Python<'_>,
        user_pk: i64,
        stream_pk: i64,
        name: &str,
        retention_class: i16,
        policy: u64,
        ttl_max_s: Option<u64>,
        bytes_max: Option<u64>,
        stored_bytes: u64,
        seq: u64,
        chain: Input,
        received_at_ms: u64,
        auth_epoch: i64,
        authors_packed: Input,
        authors: Vec<(i64, u64, u64, Input)>,
    ) -> PyResult<Self> {
        let authors = authors
            .into_iter()
            .map(|(device_pk, last_n, last_seq, last_hash)| {
                Ok(Author { device_pk, last_n, last_seq, last_hash: last_hash.array("a hash")? })
            })
            .collect::<PyResult<_>>()?;
        let head = CoreHead {
            user_pk,
            stream_pk,
            name: name.into(),
            retention_class,
            policy: Policy::from_number(policy).ok_or_else(|| PyValueError::new_err("no such policy"))?,
            ttl_max_s,
            bytes_max,
            stored_bytes,
            seq,
            chain: chain.array("a chain")?,
            received_at_ms,
            auth_epoch,
            authors: Arc::default(),
            authors_in_table: false,
        };
        Ok(Self(Arc::new(head.with_stored_authors(&authors_packed, authors).or_raise(py)?)))
    }

    #[getter]
    fn user_pk(&self) -> i64 {
        self.0.user_pk
    }

    #[getter]
    fn stream_pk(&self) -> i64 {
        self.0.stream_pk
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn retention_class(&self) -> i16 {
        self.0.retention_class
    }

    #[getter]
    fn policy(&self) -> u8 {
        self.0.policy.number()
    }

    #[getter]
    fn ttl_max_s(&self) -> Option<u64> {
        self.0.ttl_max_s
    }

    #[getter]
    fn bytes_max(&self) -> Option<u64> {
        self.0.bytes_max
    }

    #[getter]
    fn stored_bytes(&self) -> u64 {
        self.0.stored_bytes
    }

    fn with_stored_bytes(&self, stored_bytes: u64) -> Self {
        Self(Arc::new(CoreHead { stored_bytes, ..CoreHead::clone(&self.0) }))
    }

    #[getter]
    fn seq(&self) -> u64 {
        self.0.seq
    }

    #[getter]
    fn chain<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.chain)
    }

    #[getter]
    fn received_at_ms(&self) -> u64 {
        self.0.received_at_ms
    }

    #[getter]
    fn auth_epoch(&self) -> i64 {
        self.0.auth_epoch
    }

    #[getter]
    fn authors_packed<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.authors_packed())
    }

    #[getter]
    fn author_count(&self) -> usize {
        self.0.authors.len()
    }

    fn author<'py>(&self, py: Python<'py>, device_pk: i64) -> Option<(u64, u64, Bound<'py, PyBytes>)> {
        self.0.author(device_pk).map(|author| (author.last_n, author.last_seq, bytes(py, &author.last_hash)))
    }
}

/// Consecutive committed events of one stream as a session sends them.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct Run(Arc<CoreRun>);

#[pymethods]
impl Run {
    #[getter]
    fn user_pk(&self) -> i64 {
        self.0.user_pk
    }

    #[getter]
    fn stream_pk(&self) -> i64 {
        self.0.stream_pk
    }

    #[getter]
    fn first_seq(&self) -> u64 {
        self.0.first_seq
    }

    #[getter]
    fn last_seq(&self) -> u64 {
        self.0.last_seq()
    }

    #[getter]
    fn prev_chain<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.prev_chain)
    }

    #[getter]
    fn chain<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.chain())
    }

    #[getter]
    fn count(&self) -> usize {
        self.0.count()
    }

    #[getter]
    fn rows_bytes(&self) -> usize {
        self.0.rows_bytes()
    }

    #[getter]
    fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    fn continues(&self, last: &Self) -> bool {
        self.0.continues(&last.0)
    }

    fn message<'py>(&self, py: Python<'py>, stream: &str) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.0.message(stream).or_raise(py)?))
    }

    #[getter]
    fn expires_at_ms(&self) -> Option<u64> {
        self.0.expires_at_ms
    }

    #[pyo3(signature = (after, *, events_max, bytes_max))]
    fn page<'py>(
        &self,
        py: Python<'py>,
        after: u64,
        events_max: usize,
        bytes_max: usize,
    ) -> PyResult<(Bound<'py, PyBytes>, usize, u64, Bound<'py, PyBytes>)> {
        let page = self.0.page(after, events_max, bytes_max).or_raise(py)?;
        Ok((bytes(py, page.rows), page.count, page.last_seq, bytes(py, &page.chain)))
    }
}

/// What one batch becomes, before the commit.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct Ingested(pub(crate) CoreIngested);

type KeyedRow<'py> = (i64, i64, Bound<'py, PyBytes>, u64, u64, Bound<'py, PyBytes>, u64);
type ChangedAuthor<'py> = (i64, i64, i64, u64, u64, Bound<'py, PyBytes>);

#[pymethods]
impl Ingested {
    #[getter]
    fn results<'py>(&self, py: Python<'py>) -> PyResult<Vec<Vec<Bound<'py, PyTuple>>>> {
        self.0.results.iter().map(|answers| answers.iter().map(|answer| answer_tuple(py, answer)).collect()).collect()
    }

    #[getter]
    fn moved(&self) -> Vec<(StreamHead, StreamHead)> {
        let heads = |moved: &keepstep_core::ingest::Moved| {
            (StreamHead(Arc::clone(&moved.old)), StreamHead(Arc::clone(&moved.new)))
        };
        self.0.moved.iter().map(heads).collect()
    }

    #[getter]
    fn changed_authors<'py>(&self, py: Python<'py>) -> Vec<ChangedAuthor<'py>> {
        let rows = self.0.moved.iter().flat_map(|moved| {
            let (user_pk, stream_pk) = (moved.new.user_pk, moved.new.stream_pk);
            moved.changed_authors.iter().map(move |author| {
                let Author { device_pk, last_n, last_seq, last_hash } = author;
                (user_pk, stream_pk, *device_pk, *last_n, *last_seq, bytes(py, last_hash))
            })
        });
        rows.collect()
    }

    #[getter]
    fn changed_policies(&self) -> Vec<StreamHead> {
        let changed = self.0.moved.iter().filter(|moved| !moved.new.has_rules_of(&moved.old));
        changed.map(|moved| StreamHead(Arc::clone(&moved.new))).collect()
    }

    #[getter]
    fn keyed<'py>(&self, py: Python<'py>) -> Vec<KeyedRow<'py>> {
        let rows = self.0.moved.iter().flat_map(|moved| {
            let CoreHead { user_pk, stream_pk, received_at_ms, .. } = *moved.new;
            moved.keyed.iter().map(move |Keyed { key, seq, hlc, device_id }| {
                (user_pk, stream_pk, bytes(py, key), *seq, *hlc, bytes(py, device_id), received_at_ms)
            })
        });
        rows.collect()
    }

    #[getter]
    fn only_moves(&self) -> bool {
        only_moves(&self.0)
    }

    #[getter]
    fn retention_classes(&self) -> Vec<i16> {
        let distinct: BTreeSet<_> = self.0.moved.iter().map(|moved| moved.new.retention_class).collect();
        distinct.into_iter().collect()
    }

    #[pyo3(signature = (retention_class, *, excluding = HashSet::new()))]
    fn copy_bytes<'py>(
        &self,
        py: Python<'py>,
        retention_class: i16,
        excluding: HashSet<(i64, i64)>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let rows: Vec<&[u8]> = self
            .0
            .moved
            .iter()
            .filter(|moved| moved.new.retention_class == retention_class)
            .filter(|moved| !excluding.contains(&(moved.new.user_pk, moved.new.stream_pk)))
            .map(|moved| &*moved.copy_rows)
            .collect();
        let parts = || [copy::HEADER].into_iter().chain(rows.iter().copied()).chain([copy::TRAILER]);
        PyBytes::new_with(py, parts().map(<[u8]>::len).sum(), |mut output| {
            for part in parts() {
                let (target, rest) = output.split_at_mut(part.len());
                target.copy_from_slice(part);
                output = rest;
            }
            Ok(())
        })
    }

    #[getter]
    fn runs(&self) -> Vec<Run> {
        self.0.moved.iter().map(|moved| Run(Arc::clone(&moved.run))).collect()
    }

    #[getter]
    fn runs_by_stream(&self) -> Vec<((i64, &str), Run)> {
        self.0.moved.iter().map(|moved| ((moved.new.user_pk, &*moved.new.name), Run(Arc::clone(&moved.run)))).collect()
    }

    fn encoded_answers<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let encoded = |answers: &Vec<Answer>| Ok(bytes(py, &answers::encode(answers).or_raise(py)?));
        self.0.results.iter().map(encoded).collect()
    }

    fn counts(&self, py: Python<'_>) -> PyResult<BTreeMap<&'static str, u64>> {
        answers::count(self.0.results.iter().flatten()).or_raise(py)
    }

    #[getter]
    fn suspects(&self) -> Vec<usize> {
        let is_suspect = |answers: &Vec<Answer>| answers.contains(&Answer::Refused(Error::BadSignature));
        let suspects = self.0.results.iter().enumerate().filter(|(_, answers)| is_suspect(answers));
        suspects.map(|(place, _)| place).collect()
    }
}

/// Whether heads and events are all there is to store.
pub(crate) fn only_moves(ingested: &CoreIngested) -> bool {
    ingested
        .moved
        .iter()
        .all(|moved| moved.changed_authors.is_empty() && moved.keyed.is_empty() && moved.new.has_rules_of(&moved.old))
}

/// The answer as the stub documents it.
fn answer_tuple<'py>(py: Python<'py>, answer: &Answer) -> PyResult<Bound<'py, PyTuple>> {
    match answer {
        Answer::New { count, first_seq, received_at_ms, chain } => {
            (0, count, first_seq, received_at_ms, bytes(py, chain)).into_pyobject(py)
        }
        Answer::Duplicate { seq, stored } => {
            let (chain, received_at_ms) = stored.as_ref().map(|(chain, at_ms)| (bytes(py, chain), at_ms)).unzip();
            (1, seq, chain, received_at_ms).into_pyobject(py)
        }
        Answer::OutOfOrder { last_n, last_hash } => refused(py, "out_of_order", Some((*last_n, last_hash))),
        Answer::IdReused { seq, hash } => refused(py, "id_reused", Some((*seq, hash))),
        Answer::Conflict { head_seq, head_chain } => refused(py, "conflict", Some((*head_seq, head_chain))),
        Answer::Refused(error) => refused(py, error.code(), None),
        Answer::Lookup { index, n, hash, last_seq } => (3, index, n, bytes(py, hash), last_seq).into_pyobject(py),
    }
}

fn refused<'py>(py: Python<'py>, code: &str, detail: Option<(u64, &[u8; 32])>) -> PyResult<Bound<'py, PyTuple>> {
    let detail_list = PyList::empty(py);
    if let Some((number, hash)) = detail {
        detail_list.append(number)?;
        detail_list.append(bytes(py, hash))?;
    }
    (2, code, detail_list).into_pyobject(py)
}

#[pyfunction]
#[pyo3(signature = (submissions, heads, *, now_ms, rooms = HashMap::new(), essential = false))]
pub(crate) fn ingest(
    py: Python<'_>,
    submissions: Vec<Py<Submission>>,
    heads: &Bound<'_, PyMapping>,
    now_ms: u64,
    rooms: HashMap<i64, i64>,
    essential: bool,
) -> PyResult<Ingested> {
    let submissions: Vec<_> = submissions.iter().map(|submission| submission.get().core.clone()).collect();
    let plan = Plan::new(&submissions);
    let heads = plan
        .streams
        .iter()
        .map(|(user_pk, name)| match heads.get_item((user_pk, &**name)) {
            Ok(head) => Ok(Some(Arc::clone(&head.cast::<StreamHead>()?.get().0))),
            Err(error) if error.is_instance_of::<PyKeyError>(py) => Ok(None),
            Err(error) => Err(error),
        })
        .collect::<PyResult<_>>()?;
    let rooms = Rooms { by_user: rooms, essential };
    py.detach(|| core_ingest(&submissions, &plan, heads, rooms, now_ms)).or_raise(py).map(Ingested)
}
