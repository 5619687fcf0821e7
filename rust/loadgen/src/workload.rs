//! One device at work: publishes what was prepared, takes answers and deliveries, and checks both.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use keepstep_core::hash::{Hash, chain_0, chain_next, event_hash};
use keepstep_core::header::Header;
use keepstep_loadgen::measured::{EventLatencies, Measured};
use keepstep_loadgen::schedule::Schedule;
use tokio::sync::Notify;

use crate::connection::Connection;
use crate::observations::{Observations, Observed, Row};
use crate::prepared::Prepared;
use crate::streams::{stream_index, stream_name, write_acks, write_subscriptions};
use crate::wire::{Answer, Answers, Cursor, FromServer};

/// A device acknowledges its position when it holds this part of what the server lets it leave unacknowledged.
pub(crate) const ACK_SHARE: u64 = 8;
pub(crate) const UNACKED_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;
const INFLIGHT_DEFAULT: u64 = 64;

/// What the devices of one user know of each other; only the generator does, no device would.
pub(crate) struct Shared {
    pub(crate) user_key: [u8; 32],
    pub(crate) ids: Vec<[u8; 16]>,
    pub(crate) prepared: Vec<Prepared>,
    /// By device and publish message: when it was due, nanoseconds since the start, plus one; 0 before it was sent.
    due_ns: Vec<Vec<AtomicU64>>,
    /// Devices that still publish or wait for an answer.
    publishing: AtomicUsize,
    /// By stream the highest seq that was acknowledged to any of them.
    acknowledged_seq: Vec<AtomicU64>,
    pub(crate) wakers: Vec<Arc<Notify>>,
}

impl Shared {
    pub(crate) fn new(user_key: [u8; 32], ids: Vec<[u8; 16]>, prepared: Vec<Prepared>, streams: usize) -> Self {
        let due_ns = prepared.iter().map(|one| (0..one.frames()).map(|_| AtomicU64::new(0)).collect()).collect();
        Self {
            user_key,
            due_ns,
            publishing: AtomicUsize::new(prepared.len()),
            acknowledged_seq: (0..streams).map(|_| AtomicU64::new(0)).collect(),
            wakers: ids.iter().map(|_| Arc::default()).collect(),
            ids,
            prepared,
        }
    }

    fn publishing_ended(&self) {
        self.publishing.fetch_sub(1, Ordering::AcqRel);
        for waker in &self.wakers {
            waker.notify_one();
        }
    }
}

/// What a worker does and how far it is.
pub(crate) struct Worker {
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) shared: Arc<Shared>,
    /// Its place among its user's devices.
    pub(crate) device: usize,
    /// Its place among all connections.
    pub(crate) connection: usize,
    window: usize,
    events_per_frame: u64,
    subscribed: bool,
    observe: bool,
    next_frame: usize,
    /// Messages that are sent before the warm-up.
    first_frames: usize,
    in_flight: usize,
    publishing: bool,
    /// By stream the position and the chain there.
    places: Vec<(u64, Hash)>,
    /// Streams that moved since the last ack, each once: by stream whether it is among them.
    unacked: Vec<usize>,
    is_unacked: Vec<bool>,
    unacked_bytes: u64,
    ack_at_bytes: u64,
    pub(crate) measured: Measured,
    latencies: Arc<EventLatencies>,
    pub(crate) observations: Observations,
}

/// What all workers are told alike.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) window: usize,
    pub(crate) events_per_frame: usize,
    pub(crate) subscribed: bool,
    pub(crate) observe: bool,
    /// First messages of each at least.
    pub(crate) first_frames: usize,
}

impl Worker {
    pub(crate) fn new(
        schedule: Arc<Schedule>,
        shared: Arc<Shared>,
        device: usize,
        connection: usize,
        plan: Plan,
        latencies: Arc<EventLatencies>,
    ) -> Self {
        let place = |stream| (0, chain_0(&shared.user_key, &stream_name(stream)));
        let places: Vec<_> = (0..shared.acknowledged_seq.len()).map(place).collect();
        let first_frames = shared.prepared[device].beginnings().max(plan.first_frames);
        Self {
            schedule,
            shared,
            device,
            connection,
            window: plan.window,
            events_per_frame: plan.events_per_frame as u64,
            subscribed: plan.subscribed,
            observe: plan.observe,
            next_frame: 0,
            first_frames,
            in_flight: 0,
            publishing: true,
            unacked: Vec::new(),
            is_unacked: vec![false; places.len()],
            places,
            unacked_bytes: 0,
            ack_at_bytes: UNACKED_BYTES_DEFAULT / ACK_SHARE,
            measured: Measured::default(),
            latencies,
            observations: Observations::default(),
        }
    }

    /// Works until everything sent is answered and everything acknowledged is delivered, or the time for it is over.
    pub(crate) async fn run(mut self, mut connection: Connection) -> Self {
        let limits = &connection.limits;
        let inflight_max = usize::try_from(limits.get("inflight_publishes", INFLIGHT_DEFAULT)).unwrap_or(usize::MAX);
        self.window = self.window.min(inflight_max).max(1);
        self.ack_at_bytes = limits.get("unacked_bytes", UNACKED_BYTES_DEFAULT) / ACK_SHARE;
        if let Err(error) = self.work(&mut connection).await {
            self.measured.error(format!("{error:#}"));
        }
        self.end_publishing();
        if let Err(error) = connection.close().await {
            self.measured.error(format!("closing: {error:#}"));
        }
        self.observations.sent_frames = self.next_frame;
        self.measured.published = self.next_frame as u64 * self.events_per_frame;
        self
    }

    async fn work(&mut self, connection: &mut Connection) -> Result<()> {
        let waker = Arc::clone(&self.shared.wakers[self.device]);
        let mut woken = pin!(waker.notified());
        let mut deadline = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            let now_ns = self.schedule.now_ns();
            self.publish(connection, now_ns)?;
            if self.done(now_ns) {
                return self.read_back(connection).await;
            }
            let stop_ns = self.schedule.stop_ns();
            let stopping = now_ns >= stop_ns;
            let until = self.schedule.instant(stop_ns) + if stopping { self.schedule.finish() } else { Duration::ZERO };
            if deadline.deadline() != until.into() {
                deadline.as_mut().reset(until.into());
            }
            tokio::select! {
                received = self.receive(connection) => received?,
                () = &mut woken => woken.set(waker.notified()),
                () = &mut deadline => {
                    ensure!(!stopping, "not everything was answered and delivered in time");
                }
            }
        }
    }

    /// Sends what is queued, and takes everything that has come, all of it at the moment when it was read. Cancel-safe.
    async fn receive(&mut self, connection: &mut Connection) -> Result<()> {
        let mut came_ns = None;
        connection
            .receive_all(|message| {
                let now_ns = *came_ns.get_or_insert_with(|| self.schedule.now_ns());
                self.received(&message, now_ns)
            })
            .await?;
        self.acknowledge(connection)
    }

    /// Reads what nobody followed, so that whoever checks the run sees what became of it.
    async fn read_back(&mut self, connection: &mut Connection) -> Result<()> {
        if self.subscribed || !self.observe {
            return Ok(());
        }
        for message in write_subscriptions(self.places.len())? {
            connection.queue(&message)?;
        }
        let until = tokio::time::Instant::now() + self.schedule.finish();
        while !self.delivered_all() {
            let received = tokio::time::timeout_at(until, self.receive(connection)).await;
            received.context("not everything was read back in time")??;
        }
        Ok(())
    }

    fn done(&mut self, now_ns: u64) -> bool {
        if self.in_flight > 0 || (self.publishing && now_ns < self.schedule.stop_ns()) {
            return false;
        }
        self.end_publishing();
        !self.subscribed || (self.shared.publishing.load(Ordering::Acquire) == 0 && self.delivered_all())
    }

    /// Whether everything that was acknowledged to anybody is here.
    fn delivered_all(&self) -> bool {
        let acknowledged = self.shared.acknowledged_seq.iter();
        self.places.iter().zip(acknowledged).all(|((position, _), seq)| *position >= seq.load(Ordering::Acquire))
    }

    fn end_publishing(&mut self) {
        if self.publishing {
            self.publishing = false;
            self.shared.publishing_ended();
        }
    }

    /// Queues what may be sent now.
    fn publish(&mut self, connection: &mut Connection, now_ns: u64) -> Result<()> {
        while self.publishing && self.in_flight < self.window {
            let paced = self.next_frame.checked_sub(self.first_frames);
            let due_ns = self.schedule.due_ns(self.connection, paced, now_ns);
            if !self.schedule.sends(due_ns, now_ns) {
                return Ok(());
            }
            let prepared = &self.shared.prepared[self.device];
            if self.next_frame == prepared.frames() {
                self.schedule.stop_now();
                return Ok(());
            }
            self.shared.due_ns[self.device][self.next_frame].store(due_ns + 1, Ordering::Release);
            if self.schedule.measures(due_ns) {
                self.latencies.late.record(due_ns, now_ns, self.events_per_frame);
            }
            let frame = self.next_frame;
            self.next_frame += 1;
            self.in_flight += 1;
            connection.queue(prepared.frame(frame))?;
        }
        Ok(())
    }

    fn received(&mut self, message: &[u8], now_ns: u64) -> Result<()> {
        match FromServer::read(message)? {
            FromServer::Accepted { rid, answers } => self.answered(usize::try_from(rid)?, answers, now_ns),
            FromServer::Events { stream, count, rows } => {
                let stream = stream_index(stream, self.places.len()).context("events of another stream")?;
                self.delivered(stream, count, rows, now_ns)?;
                if !self.is_unacked[stream] {
                    self.is_unacked[stream] = true;
                    self.unacked.push(stream);
                }
                self.unacked_bytes += message.len() as u64;
                Ok(())
            }
            FromServer::Error { code } => bail!("error {code}"),
            FromServer::Draining => bail!("the server drains"),
            FromServer::Resumed { stream, answer } => {
                ensure!(answer == "contiguous", "the subscription to {stream} was answered {answer}");
                Ok(())
            }
            FromServer::CaughtUp { .. } | FromServer::Rekey | FromServer::Other => Ok(()),
        }
    }

    /// Queues the positions of what has come, where that is much.
    fn acknowledge(&mut self, connection: &mut Connection) -> Result<()> {
        if self.unacked_bytes < self.ack_at_bytes {
            return Ok(());
        }
        self.unacked_bytes = 0;
        for ack in write_acks(&self.unacked, |stream| self.places[stream])? {
            connection.queue(&ack)?;
        }
        for stream in self.unacked.drain(..) {
            self.is_unacked[stream] = false;
        }
        Ok(())
    }

    fn answered(&mut self, frame: usize, answers: Answers<'_>, now_ns: u64) -> Result<()> {
        ensure!(frame < self.next_frame && self.in_flight > 0, "an answer to what was not sent");
        let (mut answered, mut is_refused, mut answer_count) = (0, false, 0);
        for answer in answers {
            let answer = answer?;
            match &answer {
                Answer::Accepted { count, seq, .. } => {
                    ensure!(*count > 0, "an answer for no event");
                    answered += count;
                    self.measured.acknowledged_in_all += count;
                    let stream = self.shared.prepared[self.device].stream_of(frame);
                    self.shared.acknowledged_seq[stream].fetch_max(seq + count - 1, Ordering::AcqRel);
                    let due_ns = self.shared.due_ns[self.device][frame].load(Ordering::Acquire) - 1;
                    if self.schedule.measures(now_ns) {
                        self.measured.acknowledged += count;
                    }
                    if self.schedule.measures(due_ns) {
                        self.latencies.acknowledge.record(due_ns, now_ns, *count);
                    }
                }
                Answer::Duplicate(_) => {
                    answered += 1;
                    self.measured.error("duplicate");
                }
                Answer::Refused(code) => {
                    answered += 1;
                    is_refused = true;
                    self.measured.error(code.as_str());
                }
            }
            answer_count += 1;
            if self.observe {
                self.observations.answers.push(answer);
            }
        }
        if self.observe {
            self.observations.seen.push(Observed::Answered { frame, answers: answer_count });
        }
        ensure!(answered == self.events_per_frame, "{answered} answers to {} events", self.events_per_frame);
        self.in_flight -= 1;
        self.schedule.answered();
        if is_refused {
            // What follows a refused event is out of order: this device has nothing more to say.
            self.end_publishing();
        }
        Ok(())
    }

    /// Takes a page: rows must continue the position, equal what was published, and hash to the page's chain.
    fn delivered(&mut self, stream: usize, count: u64, rows: &[u8], now_ns: u64) -> Result<()> {
        let shared = &self.shared;
        let mut cursor = Cursor::new(rows);
        let measures_now = self.schedule.measures(now_ns);
        let (mut position, mut own_chain) = self.places[stream];
        let first_seq = position + 1;
        for _ in 0..count {
            ensure!(cursor.array()? == 7, "a row has 7 fields");
            let seq = cursor.integer()?;
            ensure!(seq == position + 1, "a gap: position {position}, delivered {seq}");
            let author_id: [u8; 16] = cursor.binary_of()?;
            let received_at_ms = cursor.integer()?;
            let (row, hash) = read_event(shared, stream, &mut cursor, author_id, received_at_ms)?;
            own_chain = chain_next(&own_chain, seq, received_at_ms, &hash);
            position = seq;
            if row.other.is_some() {
                self.measured.error("an event that was not published like that");
            } else if usize::from(row.author) != self.device {
                self.measured.delivered_in_all += 1;
                self.measured.delivered += u64::from(measures_now);
                let author = usize::from(row.author);
                let frame = shared.prepared[author].frame_of(stream, usize::try_from(row.n)?);
                let due_ns = shared.due_ns[author][frame].load(Ordering::Acquire);
                ensure!(due_ns > 0, "an event was delivered before it was sent");
                if self.schedule.measures(due_ns - 1) {
                    self.latencies.deliver.record(due_ns - 1, now_ns, 1);
                }
            }
            if self.observe {
                self.observations.rows.push(row);
            }
        }
        self.places[stream] = (position, own_chain);
        let chain = cursor.binary_of()?;
        if self.observe && count > 0 {
            let rows = usize::try_from(count)?;
            self.observations.seen.push(Observed::Received { stream, seq: first_seq, rows, chain });
        }
        ensure!(chain == own_chain, "a page's chain is not that of its events");
        Ok(())
    }
}

/// Reads the rest of a row: header, signature, payload, trace. What equals the published event is not hashed again.
fn read_event(
    shared: &Shared,
    stream: usize,
    cursor: &mut Cursor<'_>,
    author_id: [u8; 16],
    received_at_ms: u64,
) -> Result<(Row, Hash)> {
    let n = number(cursor.rest())?;
    let author = shared.ids.iter().position(|id| *id == author_id);
    if let Some(author) = author {
        let tail = shared.prepared[author].tail(stream, usize::try_from(n)?);
        if !tail.is_empty() && cursor.rest().starts_with(tail) {
            cursor.skip(tail.len());
            let row = Row { author: u16::try_from(author)?, n, received_at_ms, other: None };
            return Ok((row, *shared.prepared[author].hash(stream, usize::try_from(n)?)));
        }
    }
    let header = cursor.binary()?;
    let signature: [u8; 64] = cursor.binary_of()?;
    cursor.value()?;
    cursor.value()?;
    let hash = event_hash(header, &signature);
    let n = Header::decode(header)?.n;
    Ok((Row { author: 0, n, received_at_ms, other: Some(Box::new((author_id, hash))) }, hash))
}

/// The author number in an event's header, the fifth field.
fn number(event: &[u8]) -> Result<u64> {
    let mut header = Cursor::new(Cursor::new(event).binary()?);
    header.array()?;
    header.integer()?;
    header.integer()?;
    header.binary()?;
    header.text()?;
    header.integer()
}

#[cfg(test)]
mod tests;
