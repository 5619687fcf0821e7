//! What a node remembers between batches, and deciding a batch upon it in one go (docs/adr/0344).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keepstep_core::Result;
use keepstep_core::ingest::{Answer, Ingested as CoreIngested, Plan, Submission, ingest};
use keepstep_core::remembered::{self, Account, AccountPosition, Accounts, Heads, StreamKey};
use keepstep_core::rooms::Rooms;
use pyo3::prelude::*;

use crate::buffer::Input;
use crate::ingest::{Ingested, StreamHead, only_moves};

/// Heads of the streams used last.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct RememberedHeads(Mutex<Heads>);

#[pymethods]
impl RememberedHeads {
    #[new]
    #[pyo3(signature = (*, streams_max))]
    fn new(streams_max: usize) -> Self {
        Self(Mutex::new(Heads::new(streams_max)))
    }

    #[pyo3(signature = (keys, *, generation))]
    fn get(&self, keys: Vec<(i64, String)>, generation: u64) -> HashMap<(i64, String), StreamHead> {
        let found = lock(&self.0).get(&shared(keys), generation);
        found.into_iter().map(|head| ((head.user_pk, head.name.to_string()), StreamHead(head))).collect()
    }

    #[pyo3(signature = (heads, *, generation))]
    fn put(&self, heads: Vec<Py<StreamHead>>, generation: u64) {
        lock(&self.0).put(heads.iter().map(|head| Arc::clone(&head.get().0)), generation);
    }

    #[pyo3(signature = (ingested, *, generation))]
    fn keep(&self, ingested: &Ingested, generation: u64) {
        self.keep_moved(&ingested.0, generation);
    }

    fn drop(&self, keys: Vec<(i64, String)>) {
        lock(&self.0).drop_all(&shared(keys));
    }

    #[getter]
    fn hits(&self) -> (u64, u64) {
        let hits = lock(&self.0).hits;
        (hits.found, hits.missing)
    }
}

impl RememberedHeads {
    /// Remembers what a batch moved.
    pub(crate) fn keep_moved(&self, ingested: &CoreIngested, generation: u64) {
        lock(&self.0).put(ingested.moved.iter().map(|moved| Arc::clone(&moved.new)), generation);
    }
}

type LiveDevices = (i64, HashMap<i64, Option<i64>>, Option<i64>);
type Place = (i64, (u64, Input));

/// Accounts used last, and positions that their `$devices` went through.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct RememberedAccounts(Mutex<Accounts>);

#[pymethods]
impl RememberedAccounts {
    #[new]
    #[pyo3(signature = (*, users_max, positions_max))]
    fn new(users_max: usize, positions_max: usize) -> Self {
        Self(Mutex::new(Accounts::new(users_max, positions_max)))
    }

    #[pyo3(signature = (user_pks, *, generation))]
    fn get(&self, user_pks: Vec<i64>, generation: u64) -> HashMap<i64, LiveDevices> {
        let found = lock(&self.0).get(&user_pks, generation);
        found
            .into_iter()
            .map(|(user_pk, each)| (user_pk, (each.auth_epoch, each.expires_at_ms, each.bytes_max)))
            .collect()
    }

    #[pyo3(signature = (accounts, *, generation))]
    fn put(&self, accounts: Vec<(i64, LiveDevices)>, generation: u64) {
        let account = |(user_pk, (auth_epoch, expires_at_ms, bytes_max))| {
            (user_pk, Account { auth_epoch, expires_at_ms, bytes_max })
        };
        lock(&self.0).put(accounts.into_iter().map(account), generation);
    }

    #[pyo3(signature = (positions, *, generation))]
    fn holds(&self, positions: Vec<Place>, generation: u64) -> PyResult<Vec<bool>> {
        Ok(lock(&self.0).holds(&places(positions)?, generation))
    }

    #[pyo3(signature = (positions, *, generation))]
    fn hold(&self, positions: Vec<Place>, generation: u64) -> PyResult<()> {
        lock(&self.0).hold(places(positions)?, generation);
        Ok(())
    }

    #[getter]
    fn hits(&self) -> (u64, u64) {
        let hits = lock(&self.0).hits;
        (hits.found, hits.missing)
    }
}

/// What a batch of known streams and devices becomes; `None` where it takes more than what is remembered.
pub(crate) fn decide(
    submissions: &[Submission],
    heads: &RememberedHeads,
    accounts: &RememberedAccounts,
    now_ms: u64,
    received_at_ms_max: u64,
    generation: u64,
) -> Result<Option<CoreIngested>> {
    let plan = Plan::new(submissions);
    let known = {
        // Always in this order, and nothing of Python's is done meanwhile.
        let (mut heads, mut accounts) = (lock(&heads.0), lock(&accounts.0));
        let (heads, accounts) = (&mut *heads, &mut *accounts);
        remembered::heads_of_known(submissions, &plan, heads, accounts, generation, received_at_ms_max)
    };
    let Some(known) = known else { return Ok(None) };
    let ingested = ingest(submissions, &plan, known, Rooms::default(), now_ms)?;
    Ok(Some(ingested).filter(|ingested| ingested.moved.len() == plan.streams.len() && is_plain(ingested)))
}

/// Whether something is stored, by moving heads only, and no answer takes a look at what was stored before.
fn is_plain(ingested: &CoreIngested) -> bool {
    let plain = |answer: &Answer| {
        matches!(
            answer,
            Answer::New { .. }
                | Answer::OutOfOrder { .. }
                | Answer::IdReused { .. }
                | Answer::Conflict { .. }
                | Answer::Refused(_)
        )
    };
    !ingested.moved.is_empty() && only_moves(ingested) && ingested.results.iter().flatten().all(plain)
}

/// Nothing of Python's may be done while it is held: it could wait for the GIL, whose holder waits for this.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shared(keys: Vec<(i64, String)>) -> Vec<StreamKey> {
    keys.into_iter().map(|(user_pk, name)| (user_pk, name.into())).collect()
}

fn places(positions: Vec<Place>) -> PyResult<Vec<AccountPosition>> {
    positions.into_iter().map(|(user_pk, (seq, chain))| Ok((user_pk, seq, chain.array("a chain")?))).collect()
}
