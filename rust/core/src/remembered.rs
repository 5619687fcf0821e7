//! What a node remembers of streams and accounts between batches, so that a batch of what it knows asks nobody
//! (docs/adr/0344).
//!
//! All of it is of one generation of the database: another one makes it forget everything.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::hash::Hash;
use crate::head::StreamHead;
use crate::ingest::{Plan, Submission};
use crate::recent::Recent;

/// (`user_pk`, name).
pub type StreamKey = (i64, Arc<str>);
/// (`user_pk`, seq, chain) in `$devices`.
pub type AccountPosition = (i64, u64, Hash);

/// How often something was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// What there was.
    pub found: u64,
    /// What had to be fetched.
    pub missing: u64,
}

impl Hits {
    fn count(&mut self, found: usize, asked: usize) {
        self.found += found as u64;
        self.missing += (asked - found) as u64;
    }
}

/// Heads of the streams used last. Each is only ever an offer to the store's compare and set.
pub struct Heads {
    generation: u64,
    recent: Recent<StreamKey, Arc<StreamHead>>,
    /// Heads that batches asked for.
    pub hits: Hits,
}

impl Heads {
    /// Nothing yet; of `streams_max` streams.
    pub fn new(streams_max: usize) -> Self {
        Self { generation: 0, recent: Recent::new(streams_max), hits: Hits::default() }
    }

    /// The heads remembered of `keys`.
    pub fn get(&mut self, keys: &[StreamKey], generation: u64) -> Vec<Arc<StreamHead>> {
        self.turn(generation);
        let found: Vec<_> = keys.iter().filter_map(|key| self.recent.get(key).cloned()).collect();
        self.hits.count(found.len(), keys.len());
        found
    }

    /// Remembers committed heads; not those of a generation that is over.
    pub fn put(&mut self, heads: impl IntoIterator<Item = Arc<StreamHead>>, generation: u64) {
        if generation < self.generation {
            return;
        }
        self.turn(generation);
        for head in heads {
            self.recent.insert((head.user_pk, Arc::clone(&head.name)), head);
        }
    }

    /// Forgets heads.
    pub fn drop_all(&mut self, keys: &[StreamKey]) {
        for key in keys {
            self.recent.remove(key);
        }
    }

    fn turn(&mut self, generation: u64) {
        if generation != self.generation {
            self.recent.clear();
            self.generation = generation;
        }
    }
}

/// The devices of a user that have not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// As of which of the account's epochs.
    pub auth_epoch: i64,
    /// By `device_pk`, unix milliseconds; `None` for never.
    pub expires_at_ms: HashMap<i64, Option<i64>>,
    /// The account's own quota of bytes.
    pub bytes_max: Option<i64>,
}

/// Accounts used last, and positions that their `$devices` went through.
pub struct Accounts {
    generation: u64,
    users: Recent<i64, Account>,
    positions: Recent<AccountPosition, ()>,
    /// Users whose devices batches asked for.
    pub hits: Hits,
}

impl Accounts {
    /// Nothing yet; of so many users, and so many positions.
    pub fn new(users_max: usize, positions_max: usize) -> Self {
        Self {
            generation: 0,
            users: Recent::new(users_max),
            positions: Recent::new(positions_max),
            hits: Hits::default(),
        }
    }

    /// The accounts remembered of `user_pks`.
    pub fn get(&mut self, user_pks: &[i64], generation: u64) -> Vec<(i64, Account)> {
        self.turn(generation);
        let found: Vec<_> =
            user_pks.iter().filter_map(|user_pk| Some((*user_pk, self.users.get(user_pk)?.clone()))).collect();
        self.hits.count(found.len(), user_pks.len());
        found
    }

    /// Remembers accounts as the store had them; not those of a generation that is over.
    pub fn put(&mut self, accounts: impl IntoIterator<Item = (i64, Account)>, generation: u64) {
        if generation < self.generation {
            return;
        }
        self.turn(generation);
        for (user_pk, account) in accounts {
            self.users.insert(user_pk, account);
        }
    }

    /// Which of the positions are remembered as ones that there are.
    pub fn holds(&mut self, positions: &[AccountPosition], generation: u64) -> Vec<bool> {
        self.turn(generation);
        positions.iter().map(|position| self.positions.contains(position)).collect()
    }

    /// Remembers positions that the store holds: `$devices` only grows, so they stay right.
    pub fn hold(&mut self, positions: impl IntoIterator<Item = AccountPosition>, generation: u64) {
        if generation < self.generation {
            return;
        }
        self.turn(generation);
        for position in positions {
            self.positions.insert(position, ());
        }
    }

    fn turn(&mut self, generation: u64) {
        if generation != self.generation {
            self.users.clear();
            self.positions.clear();
            self.generation = generation;
        }
    }
}

/// The heads of a batch's streams, where everything that deciding it takes is remembered; else `None`, and nothing is counted.
///
/// That is: every head, without a bound of bytes and received up to `received_at_ms_max`; every account, of its heads'
/// epoch and without a quota; every device, live and for ever; every position of `$devices` that the events name. What
/// is checked against stored events is never decided so.
pub fn heads_of_known(
    submissions: &[Submission],
    plan: &Plan,
    heads: &mut Heads,
    accounts: &mut Accounts,
    generation: u64,
    received_at_ms_max: u64,
) -> Option<Vec<Option<Arc<StreamHead>>>> {
    if heads.generation != generation || accounts.generation != generation {
        return None;
    }
    let mut found = Vec::with_capacity(plan.streams.len());
    for key in &plan.streams {
        let head = heads.recent.get(key)?;
        if head.bytes_max.is_some() || head.received_at_ms > received_at_ms_max {
            return None;
        }
        if accounts.users.get(&key.0)?.auth_epoch != head.auth_epoch {
            return None;
        }
        found.push(Some(Arc::clone(head)));
    }
    let mut users = HashSet::new();
    for submission in submissions {
        let account = accounts.users.get(&submission.user_pk)?;
        let lives_for_ever = account.expires_at_ms.get(&submission.device_pk) == Some(&None);
        if account.bytes_max.is_some() || !lives_for_ever || submission.events.checked_apart() {
            return None;
        }
        for (seq, chain) in submission.events.devices_seen() {
            if !accounts.positions.contains(&(submission.user_pk, seq, chain)) {
                return None;
            }
        }
        users.insert(submission.user_pk);
    }
    heads.hits.count(found.len(), found.len());
    accounts.hits.count(users.len(), users.len());
    Some(found)
}
