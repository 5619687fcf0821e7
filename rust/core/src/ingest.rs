//! One batch of publishes: verified, decided, numbered, hashed, chained and encoded in one call (docs/adr/0051).
//!
//! The checks run in the order of protocol.md section 3, event by event in the order of the submissions. An event that is refused changes
//! nothing for those after it. Nothing decided here is true before the transaction that stores it has committed.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use crate::batch::{Item, verify_many};
use crate::copy;
use crate::error::{Error, Result};
use crate::event::{Events, Parsed, Signer};
use crate::hash::{Hash, chain_0, chain_next};
use crate::head::{AUTHORS_PACKED_MAX, Author, StreamHead, TIME_MS_MAX};
use crate::header::{Base, Kind};
use crate::policy::{Policy, Rules};
use crate::rooms::{Rooms, check_stream};
use crate::run::{Run, WireRow};

/// How far in the future an event's own times may be, milliseconds (protocol.md section 3).
pub const FUTURE_MS_MAX: u64 = 10 * 60 * 1000;

/// The capability bit to write application streams (protocol.md section 1).
pub const CAPABILITY_PUBLISH: u64 = 1;
/// The capability bit to write `$devices`, `$keys` and policies.
pub const CAPABILITY_MANAGE: u64 = 4;

/// Events with the device that sent them.
#[derive(Clone)]
pub struct Submission {
    /// The user's row number.
    pub user_pk: i64,
    /// The device's row number.
    pub device_pk: i64,
    /// User, device and key that the signatures bind.
    pub signer: Arc<Signer>,
    /// Capability bits, as enrolled.
    pub capabilities: u64,
    /// Whether to verify apart from what others signed.
    pub suspect: bool,
    /// Whether a restore took the events' places away: then what they build on, or had seen, is not asked.
    pub anew: bool,
    /// The events, in order.
    pub events: Arc<Events>,
}

/// What becomes of an event, or of consecutive ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `count` new events at consecutive seqs of one stream.
    New {
        /// How many.
        count: u64,
        /// Seq of the first.
        first_seq: u64,
        /// Unix milliseconds.
        received_at_ms: u64,
        /// The chain at the last.
        chain: Hash,
    },
    /// The author's last stored event again, or one of this batch.
    Duplicate {
        /// Where it is.
        seq: u64,
        /// The chain there and when it was received, where the head says.
        stored: Option<(Hash, u64)>,
    },
    /// The author number does not follow.
    OutOfOrder {
        /// The author's last number.
        last_n: u64,
        /// That event's hash.
        last_hash: Hash,
    },
    /// Another event has this author number.
    IdReused {
        /// Where it is.
        seq: u64,
        /// Its hash.
        hash: Hash,
    },
    /// The stream's head is not what the event builds on.
    Conflict {
        /// Seq of the head.
        head_seq: u64,
        /// The chain there.
        head_chain: Hash,
    },
    /// Refused, with nothing to add.
    Refused(Error),
    /// Older than the author's last and not of this batch: the database knows.
    Lookup {
        /// The event's index in its submission.
        index: usize,
        /// Its author number.
        n: u64,
        /// Its hash.
        hash: Hash,
        /// Where the walk along `author_prev_seq` starts: the author's last stored event.
        last_seq: u64,
    },
}

/// A stream that moves.
pub struct Moved {
    /// The head that was loaded.
    pub old: Arc<StreamHead>,
    /// The head after the batch.
    pub new: Arc<StreamHead>,
    /// Authors to write to the authors table.
    pub changed_authors: Vec<Author>,
    /// The new rows for COPY, without header and trailer.
    pub copy_rows: Vec<u8>,
    /// The new events that compete for a key, in a stream of the policy `latest`.
    pub keyed: Vec<Keyed>,
    /// The new events as sessions send them.
    pub run: Arc<Run>,
}

/// An event of a stream of the policy `latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// What it writes.
    pub key: [u8; 16],
    /// Where it is.
    pub seq: u64,
    /// The author's time; the higher (hlc, `device_id`, seq) wins.
    pub hlc: u64,
    /// The author.
    pub device_id: [u8; 16],
}

/// What one batch becomes.
pub struct Ingested {
    /// Per submission, answers in order of its events, runs of new ones joined.
    pub results: Vec<Vec<Answer>>,
    /// Ascending by (`user_pk`, `stream_pk`).
    pub moved: Vec<Moved>,
}

/// The distinct streams of a batch, in order of first use.
pub struct Plan {
    /// (`user_pk`, name).
    pub streams: Vec<(i64, Arc<str>)>,
    /// Per submission, per stream of its events, the index in `streams`.
    slots: Vec<Vec<usize>>,
}

impl Plan {
    /// Which heads a batch needs.
    pub fn new(submissions: &[Submission]) -> Self {
        let mut streams = Vec::new();
        let mut indices = HashMap::new();
        let slots = submissions
            .iter()
            .map(|submission| {
                let slot = |name: &Arc<str>| {
                    *indices.entry((submission.user_pk, Arc::clone(name))).or_insert_with(|| {
                        streams.push((submission.user_pk, Arc::clone(name)));
                        streams.len() - 1
                    })
                };
                submission.events.streams().iter().map(slot).collect()
            })
            .collect();
        Self { streams, slots }
    }
}

/// Decides a whole batch. `heads`: one per stream of the plan, `None` where there is no such stream.
pub fn ingest(
    submissions: &[Submission],
    plan: &Plan,
    heads: Vec<Option<Arc<StreamHead>>>,
    mut rooms: Rooms,
    now_ms: u64,
) -> Result<Ingested> {
    if now_ms > TIME_MS_MAX {
        return Err(Error::Argument("the time is above 2^48 - 1 ms"));
    }
    let verdicts = verify(submissions);
    let mut walks: Vec<_> = heads.into_iter().map(|head| head.map(|head| Walk::new(head, now_ms))).collect();
    let mut results = Vec::with_capacity(submissions.len());
    for (place, (submission, verdicts)) in submissions.iter().zip(verdicts).enumerate() {
        let mut answers = Answers::default();
        for (index, good) in verdicts.into_iter().enumerate() {
            let source = Source { submission, place, index, good };
            source.decide(&plan.slots[place], &mut walks, &mut rooms, now_ms, &mut answers);
        }
        results.push(answers.joined);
    }
    let mut moved = walks
        .into_iter()
        .flatten()
        .filter(|walk| !walk.rows.is_empty())
        .map(|walk| walk.finish(submissions))
        .collect::<Result<Vec<_>>>()?;
    moved.sort_unstable_by_key(|moved| (moved.new.user_pk, moved.new.stream_pk));
    Ok(Ingested { results, moved })
}

/// Per submission and event, whether the signature is good; badly formed events are not looked at.
fn verify(submissions: &[Submission]) -> Vec<Vec<bool>> {
    let mut verdicts: Vec<Vec<bool>> =
        submissions.iter().map(|submission| vec![false; submission.events.len()]).collect();
    let (mut merged, mut apart) = (Lane::default(), Vec::new());
    for (place, submission) in submissions.iter().enumerate() {
        let mut own = Lane::default();
        let lane = if submission.suspect { &mut own } else { &mut merged };
        let (events, signer) = (&submission.events, &submission.signer);
        for (index, verdict) in verdicts[place].iter_mut().enumerate() {
            if events.parsed(index).is_err() {
                continue;
            }
            if let Some(good) = events.verdict(index, signer) {
                *verdict = good;
                continue;
            }
            let bytes = events.bytes(index);
            lane.places.push((place, index));
            lane.items.push(Item {
                key: &signer.device_key,
                message: signer.signing_input(bytes.header),
                signature: bytes.signature,
            });
        }
        apart.push(own);
    }
    for lane in [merged].iter().chain(&apart) {
        for (&(place, index), good) in lane.places.iter().zip(verify_many(&lane.items)) {
            verdicts[place][index] = good;
            submissions[place].events.keep_verdict(index, &submissions[place].signer, good);
        }
    }
    verdicts
}

/// What one merged equation is of: a suspect's submission has one of its own, so that it searches for its bad signatures alone.
#[derive(Default)]
struct Lane<'a> {
    items: Vec<Item<'a>>,
    places: Vec<(usize, usize)>,
}

/// Answers of one submission; a new event joins the run before it.
#[derive(Default)]
struct Answers {
    joined: Vec<Answer>,
    /// The stream of the last new event.
    last_slot: Option<usize>,
}

impl Answers {
    fn push_new(&mut self, slot: usize, seq: u64, at_ms: u64, at_chain: Hash) {
        if self.last_slot == Some(slot)
            && let Some(Answer::New { count, first_seq, chain, .. }) = self.joined.last_mut()
            && *first_seq + *count == seq
        {
            *count += 1;
            *chain = at_chain;
            return;
        }
        self.joined.push(Answer::New { count: 1, first_seq: seq, received_at_ms: at_ms, chain: at_chain });
        self.last_slot = Some(slot);
    }
}

/// One event with where it comes from.
struct Source<'a> {
    submission: &'a Submission,
    place: usize,
    index: usize,
    good: bool,
}

impl Source<'_> {
    fn decide(
        &self,
        slots: &[usize],
        walks: &mut [Option<Walk>],
        rooms: &mut Rooms,
        now_ms: u64,
        answers: &mut Answers,
    ) {
        let event = match self.submission.events.parsed(self.index) {
            Ok(event) => event,
            Err(error) => return answers.joined.push(Answer::Refused(error)),
        };
        if !self.good {
            return answers.joined.push(Answer::Refused(Error::BadSignature));
        }
        let slot = slots[event.stream];
        let Some(walk) = &mut walks[slot] else {
            // In a stream that does not exist every event is new.
            let refusal = self.check_capability(event).err().unwrap_or(Error::UnknownStream);
            return answers.joined.push(Answer::Refused(refusal));
        };
        let author = walk.author(self.submission.device_pk);
        if let Some(answer) = walk.answer_known(author, event, self.index) {
            return answers.joined.push(answer);
        }
        let checked = self
            .check_capability(event)
            .and_then(|()| check_times(event, walk.received_at_ms, now_ms))
            .and_then(|()| {
                if self.submission.anew { Ok(()) } else { walk.check_seen(event, &self.submission.signer.user_key) }
            })
            .and_then(|()| walk.check_rules(event));
        if let Err(error) = checked {
            return answers.joined.push(Answer::Refused(error));
        }
        if !self.submission.anew
            && let Some(conflict) = walk.conflict(author, event)
        {
            return answers.joined.push(conflict);
        }
        let (user_pk, bytes) = (self.submission.user_pk, self.submission.events.bytes(self.index).stored());
        if !rooms.essential
            && let Err(error) = check_stream(walk.rules.bytes_max, walk.stored_bytes, event.kind, bytes)
                .and_then(|()| rooms.check(user_pk, event.kind, bytes))
        {
            return answers.joined.push(Answer::Refused(error));
        }
        rooms.take(user_pk, event.kind, bytes);
        walk.append(author, event, (self.place, self.index), bytes);
        answers.push_new(slot, walk.seq, walk.received_at_ms, walk.chain);
    }

    fn check_capability(&self, event: &Parsed) -> Result<()> {
        let needed = match event.kind {
            Kind::Application | Kind::Snapshot | Kind::Confirm => CAPABILITY_PUBLISH,
            // For one's own events it is enough to publish; whose they are is checked apart.
            Kind::Erase => CAPABILITY_PUBLISH | CAPABILITY_MANAGE,
            Kind::Policy | Kind::Account | Kind::Keys => CAPABILITY_MANAGE,
        };
        if self.submission.capabilities & needed == 0 { Err(Error::Forbidden) } else { Ok(()) }
    }
}

/// Upper bounds only: an outbox may be months old.
fn check_times(event: &Parsed, received_at_ms: u64, now_ms: u64) -> Result<()> {
    if event.hlc >> 16 > received_at_ms + FUTURE_MS_MAX {
        return Err(Error::Unprocessable("the hlc is more than 10 minutes ahead"));
    }
    if event.id_time_ms > now_ms + FUTURE_MS_MAX {
        return Err(Error::Unprocessable("the id's time is more than 10 minutes ahead"));
    }
    Ok(())
}

/// An author while the batch is walked.
struct AuthorWalk {
    before: Author,
    now: Author,
    /// Rows of this batch, for the numbers that follow `before.last_n`, in order.
    rows: Vec<usize>,
}

/// A new row of this batch.
struct Row {
    source: (usize, usize),
    device_pk: i64,
    seq: u64,
    author_prev_seq: u64,
    hash: Hash,
    chain: Hash,
    expires_at_ms: Option<u64>,
    /// Whether it competes for its key.
    competes: bool,
}

/// A stream while the batch is walked.
struct Walk {
    old: Arc<StreamHead>,
    seq: u64,
    chain: Hash,
    received_at_ms: u64,
    /// The chain before the first event, once it was needed.
    chain_0: Option<Hash>,
    /// As the last policy event says, also one of this batch.
    rules: Rules,
    /// As in `StreamHead`, with what is new.
    stored_bytes: u64,
    /// Those that sent something in this batch.
    authors: Vec<AuthorWalk>,
    rows: Vec<Row>,
}

impl Walk {
    fn new(old: Arc<StreamHead>, now_ms: u64) -> Self {
        let (seq, chain, received_at_ms) = (old.seq, old.chain, old.received_at_ms.max(now_ms));
        let StreamHead { policy, retention_class, ttl_max_s, bytes_max, stored_bytes, .. } = *old;
        let rules = Rules { policy, retention_class, ttl_max_s, bytes_max };
        let (authors, rows) = (Vec::new(), Vec::new());
        Self { old, seq, chain, received_at_ms, chain_0: None, rules, stored_bytes, authors, rows }
    }

    fn author(&mut self, device_pk: i64) -> usize {
        self.authors.iter().position(|author| author.now.device_pk == device_pk).unwrap_or_else(|| {
            let before = self.old.author(device_pk).copied().unwrap_or(Author::new(device_pk));
            self.authors.push(AuthorWalk { before, now: before, rows: Vec::new() });
            self.authors.len() - 1
        })
    }

    /// The answer to an event that is not new: its author number is not the next, or does not follow the author's last event.
    fn answer_known(&self, author: usize, event: &Parsed, index: usize) -> Option<Answer> {
        let AuthorWalk { before, now, rows } = &self.authors[author];
        if event.n == now.last_n + 1 && Some(&event.prev) == now.last_hash.first_chunk() {
            return None;
        }
        if event.n > now.last_n {
            return Some(Answer::OutOfOrder { last_n: now.last_n, last_hash: now.last_hash });
        }
        let (seq, hash, stored) = match event.n.cmp(&before.last_n) {
            Ordering::Greater => {
                let row = &self.rows[rows[usize::try_from(event.n - before.last_n - 1).ok()?]];
                (row.seq, row.hash, Some((row.chain, self.received_at_ms)))
            }
            Ordering::Equal => {
                let at_head = before.last_seq == self.old.seq;
                (before.last_seq, before.last_hash, at_head.then_some((self.old.chain, self.old.received_at_ms)))
            }
            Ordering::Less => {
                return Some(Answer::Lookup { index, n: event.n, hash: event.hash, last_seq: before.last_seq });
            }
        };
        Some(if hash == event.hash { Answer::Duplicate { seq, stored } } else { Answer::IdReused { seq, hash } })
    }

    /// The author has seen what is here, as far as the head says: readers would take anything else for the server's lie.
    ///
    /// Chains before this batch's are not looked up.
    fn check_seen(&mut self, event: &Parsed, user_key: &[u8; 32]) -> Result<()> {
        let (seq, chain) = &event.seen;
        let held = match seq.cmp(&self.old.seq) {
            Ordering::Greater => {
                let row = usize::try_from(seq - self.old.seq - 1).ok().and_then(|index| self.rows.get(index));
                &row.ok_or(Error::UnknownPosition)?.chain
            }
            Ordering::Equal => &self.old.chain,
            Ordering::Less if *seq == 0 => self.chain_0.get_or_insert_with(|| chain_0(user_key, &self.old.name)),
            Ordering::Less => return Ok(()),
        };
        if held == chain { Ok(()) } else { Err(Error::UnknownPosition) }
    }

    /// What the stream's rules ask of a new event, apart from what it builds on.
    fn check_rules(&self, event: &Parsed) -> Result<()> {
        if let Some(rules) = &event.rules {
            return self.check_change(rules);
        }
        if event.kind != Kind::Application {
            return Ok(());
        }
        if self.rules.ttl_max_s.is_some_and(|ttl_max_s| event.ttl_s.is_none_or(|ttl_s| ttl_s > ttl_max_s)) {
            return Err(Error::Unprocessable("the stream's policy asks for a shorter ttl"));
        }
        if self.rules.policy == Policy::Latest && event.key.is_none() {
            return Err(Error::Unprocessable("the stream's policy asks for a key"));
        }
        Ok(())
    }

    /// A new stream may have any rules. Later its rows stay in their table, and only `append` promises nothing to anybody
    /// that another policy would break.
    fn check_change(&self, rules: &Rules) -> Result<()> {
        if self.seq == 0 {
            return Ok(());
        }
        if rules.retention_class != self.rules.retention_class {
            return Err(Error::Unprocessable("a stream with events keeps its retention class"));
        }
        if rules.policy != self.rules.policy && self.rules.policy != Policy::Append {
            return Err(Error::Unprocessable("a stream with events only changes from append to another policy"));
        }
        Ok(())
    }

    /// `expect`: the head must be what the event builds on, else the answer.
    fn conflict(&self, author: usize, event: &Parsed) -> Option<Answer> {
        if self.rules.policy != Policy::Expect || event.kind != Kind::Application {
            return None;
        }
        let at_head = match event.base {
            Base::Unnamed => false,
            Base::Own(n) => n + 1 == event.n && self.authors[author].now.last_seq == self.seq,
            Base::At((seq, chain)) => (seq, chain) == (self.seq, self.chain),
        };
        (!at_head).then_some(Answer::Conflict { head_seq: self.seq, head_chain: self.chain })
    }

    fn append(&mut self, author: usize, event: &Parsed, source: (usize, usize), bytes: u64) {
        if let Some(rules) = event.rules {
            self.rules = rules;
        }
        self.stored_bytes = self.stored_bytes.saturating_add(bytes);
        self.seq += 1;
        self.chain = chain_next(&self.chain, self.seq, self.received_at_ms, &event.hash);
        let AuthorWalk { now, rows, .. } = &mut self.authors[author];
        rows.push(self.rows.len());
        self.rows.push(Row {
            source,
            device_pk: now.device_pk,
            seq: self.seq,
            author_prev_seq: now.last_seq,
            hash: event.hash,
            chain: self.chain,
            expires_at_ms: event.ttl_s.map(|ttl_s| self.received_at_ms + ttl_s * 1000),
            competes: self.rules.policy == Policy::Latest && event.kind == Kind::Application,
        });
        *now = Author { last_n: event.n, last_seq: self.seq, last_hash: event.hash, ..*now };
    }

    fn finish(self, submissions: &[Submission]) -> Result<Moved> {
        let (old, received_at_ms) = (&self.old, self.received_at_ms);
        let (mut copy_rows, mut keyed) = (Vec::new(), Vec::new());
        let mut run = Run::new(old.user_pk, old.stream_pk, old.seq + 1, old.chain);
        for row in &self.rows {
            let (place, index) = row.source;
            let submission = &submissions[place];
            let bytes = submission.events.bytes(index);
            // A payload that was dropped before has nothing left to expire.
            let expires_at_ms = row.expires_at_ms.filter(|_| bytes.payload.is_some());
            let event = submission.events.parsed(index)?;
            if let (true, Some(key)) = (row.competes, event.key) {
                keyed.push(Keyed { key, seq: row.seq, hlc: event.hlc, device_id: submission.signer.device_id });
            }
            copy::EventRow {
                user_pk: old.user_pk,
                stream_pk: old.stream_pk,
                seq: row.seq,
                received_at_ms,
                device_pk: row.device_pk,
                n: event.n,
                author_prev_seq: row.author_prev_seq,
                expires_at_ms,
                header: bytes.header,
                signature: bytes.signature,
                payload: bytes.payload,
                chain: &row.chain,
            }
            .write(&mut copy_rows)?;
            let wire = WireRow {
                seq: row.seq,
                device_id: &submission.signer.device_id,
                received_at_ms,
                header: bytes.header,
                signature: bytes.signature,
                payload: bytes.payload,
                trace: bytes.trace,
            };
            run.push(&wire, row.chain, expires_at_ms)?;
        }
        let (new, changed_authors) = self.new_head();
        Ok(Moved { old: self.old, new: Arc::new(new), changed_authors, copy_rows, keyed, run: Arc::new(run) })
    }

    /// The head after the batch, and the authors that the authors table is missing.
    fn new_head(&self) -> (StreamHead, Vec<Author>) {
        let old = &self.old;
        let mut changed: Vec<_> =
            self.authors.iter().filter(|author| !author.rows.is_empty()).map(|author| author.now).collect();
        changed.sort_unstable_by_key(|author| author.device_pk);
        let mut authors = old.authors.to_vec();
        for author in &changed {
            match authors.binary_search_by_key(&author.device_pk, |author| author.device_pk) {
                Ok(index) => authors[index] = *author,
                Err(index) => authors.insert(index, *author),
            }
        }
        let authors_in_table = old.authors_in_table || authors.len() > AUTHORS_PACKED_MAX;
        let changed_authors = match (old.authors_in_table, authors_in_table) {
            (_, false) => Vec::new(),
            (false, true) => authors.clone(),
            (true, true) => changed,
        };
        let new = StreamHead {
            retention_class: self.rules.retention_class,
            policy: self.rules.policy,
            ttl_max_s: self.rules.ttl_max_s,
            bytes_max: self.rules.bytes_max,
            stored_bytes: self.stored_bytes,
            seq: self.seq,
            chain: self.chain,
            received_at_ms: self.received_at_ms,
            authors: authors.into(),
            authors_in_table,
            ..StreamHead::clone(old)
        };
        (new, changed_authors)
    }
}
