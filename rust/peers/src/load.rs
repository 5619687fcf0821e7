//! One connection at work: publishes, takes what comes, and counts both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use keepstep_loadgen::measured::{EventLatencies, Measured};
use keepstep_loadgen::schedule::Schedule;
use tokio::sync::Notify;

use crate::arguments::GROUP;
use crate::connection::{Came, Connection};
use crate::event::Arrived;
use crate::report::{Faults, Observed};

/// What the connections of a run know of each other; only a generator does.
pub(crate) struct Shared {
    pub(crate) schedule: Schedule,
    /// Of each connection and event: when it was due, nanoseconds since the start, plus one; 0 before it was sent.
    due_ns: Vec<Vec<AtomicU64>>,
    /// Of each connection: how many of its events were acknowledged.
    acknowledged: Vec<AtomicU64>,
    /// Of each group: how many still publish or wait for an answer.
    publishing: Vec<AtomicUsize>,
    pub(crate) wakers: Vec<Arc<Notify>>,
    pub(crate) latencies: EventLatencies,
}

impl Shared {
    pub(crate) fn new(schedule: Schedule, connections: usize, events: usize) -> Result<Self> {
        let groups = connections.div_ceil(GROUP);
        Ok(Self {
            schedule,
            due_ns: (0..connections).map(|_| (0..events).map(|_| AtomicU64::new(0)).collect()).collect(),
            acknowledged: (0..connections).map(|_| AtomicU64::new(0)).collect(),
            publishing: (0..groups).map(|group| AtomicUsize::new(GROUP.min(connections - group * GROUP))).collect(),
            wakers: (0..connections).map(|_| Arc::default()).collect(),
            latencies: EventLatencies::new()?,
        })
    }

    fn others(&self, connection: usize) -> impl Iterator<Item = usize> {
        let group = connection / GROUP * GROUP;
        (group..(group + GROUP).min(self.wakers.len())).filter(move |&other| other != connection)
    }
}

/// One connection's part in a run.
pub(crate) struct Worker<C> {
    shared: Arc<Shared>,
    number: usize,
    connection: C,
    window: usize,
    subscribed: bool,
    next: usize,
    in_flight: usize,
    publishing: bool,
    arrived: Vec<Arrived>,
    measured: Measured,
}

impl<C: Connection> Worker<C> {
    pub(crate) fn new(shared: Arc<Shared>, number: usize, connection: C, window: usize, subscribed: bool) -> Self {
        let arrived = (0..GROUP).map(|_| Arrived::default()).collect();
        let (next, in_flight, publishing) = (0, 0, true);
        let measured = Measured::default();
        Self { shared, number, connection, window, subscribed, next, in_flight, publishing, arrived, measured }
    }

    /// Works until everything sent is answered and everything acknowledged is delivered, or the time for it is over.
    pub(crate) async fn run(mut self) -> Observed {
        if let Err(error) = self.work().await {
            self.measured.error(format!("{error:#}"));
        }
        self.end_publishing();
        self.measured.published = self.next as u64;
        let mut faults = Faults::default();
        for arrived in &self.arrived {
            faults.duplicates += arrived.duplicates;
            faults.out_of_order += arrived.out_of_order;
        }
        if self.subscribed {
            faults.lost = self.expected().saturating_sub(self.arrived());
        }
        Observed { measured: self.measured, faults }
    }

    async fn work(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let waker = &shared.wakers[self.number];
        let mut came = Vec::new();
        loop {
            self.publish().await?;
            if self.done() {
                return Ok(());
            }
            let stop_ns = shared.schedule.stop_ns();
            let stopping = shared.schedule.now_ns() >= stop_ns;
            let rest = if stopping { shared.schedule.finish() } else { Duration::ZERO };
            let until = shared.schedule.instant(stop_ns) + rest;
            tokio::select! {
                received = self.connection.receive(&mut came) => received?,
                () = waker.notified() => {}
                () = tokio::time::sleep_until(until.into()), if !stopping || self.in_flight > 0 || self.subscribed => {
                    ensure!(!stopping || self.in_flight == 0, "not everything was answered in time");
                    if stopping {
                        return Ok(());
                    }
                }
            }
            for one in came.drain(..) {
                self.take(one)?;
            }
        }
    }

    fn done(&mut self) -> bool {
        if self.in_flight > 0 || (self.publishing && self.shared.schedule.now_ns() < self.shared.schedule.stop_ns()) {
            return false;
        }
        self.end_publishing();
        let group = &self.shared.publishing[self.number / GROUP];
        !self.subscribed || (group.load(Ordering::Acquire) == 0 && self.arrived() >= self.expected())
    }

    fn expected(&self) -> u64 {
        self.shared.others(self.number).map(|other| self.shared.acknowledged[other].load(Ordering::Acquire)).sum()
    }

    fn arrived(&self) -> u64 {
        self.arrived.iter().map(|arrived| arrived.count).sum()
    }

    fn end_publishing(&mut self) {
        if self.publishing {
            self.publishing = false;
            self.shared.publishing[self.number / GROUP].fetch_sub(1, Ordering::AcqRel);
            for other in self.shared.others(self.number) {
                self.shared.wakers[other].notify_one();
            }
        }
    }

    /// Sends what may be sent now, in one write.
    async fn publish(&mut self) -> Result<()> {
        while self.publishing && self.in_flight < self.window {
            let schedule = &self.shared.schedule;
            let now_ns = schedule.now_ns();
            let due_ns = schedule.due_ns(self.number, self.next.checked_sub(1), now_ns);
            if !schedule.sends(due_ns, now_ns) {
                break;
            }
            let Some(due) = self.shared.due_ns[self.number].get(self.next) else {
                schedule.stop_now();
                break;
            };
            due.store(due_ns + 1, Ordering::Release);
            if schedule.measures(due_ns) {
                self.shared.latencies.late.record(due_ns, now_ns, 1);
            }
            self.connection.publish(self.next)?;
            self.next += 1;
            self.in_flight += 1;
        }
        self.connection.flush().await
    }

    fn take(&mut self, came: Came) -> Result<()> {
        let now_ns = self.shared.schedule.now_ns();
        match came {
            Came::Acknowledged(index) => {
                ensure!(index < self.next && self.in_flight > 0, "an answer to what was not sent");
                self.in_flight -= 1;
                self.shared.schedule.answered();
                self.shared.acknowledged[self.number].fetch_add(1, Ordering::AcqRel);
                self.measured.acknowledged_in_all += 1;
                self.measured.acknowledged += u64::from(self.shared.schedule.measures(now_ns));
                if let Some(due_ns) = self.measured_due_ns(self.number, index) {
                    self.shared.latencies.acknowledge.record(due_ns, now_ns, 1);
                }
            }
            Came::Delivered(author, _) if author == self.number => {}
            Came::Delivered(author, index) => {
                ensure!(author / GROUP == self.number / GROUP, "an event of another group");
                if self.arrived[author % GROUP].note(index) {
                    self.measured.delivered_in_all += 1;
                    self.measured.delivered += u64::from(self.shared.schedule.measures(now_ns));
                    if let Some(due_ns) = self.measured_due_ns(author, index) {
                        self.shared.latencies.deliver.record(due_ns, now_ns, 1);
                    }
                }
            }
            Came::Refused(why) => bail!("refused: {why}"),
            Came::CaughtUp => {}
        }
        Ok(())
    }

    /// When an event was due, where that was in the measured phase.
    fn measured_due_ns(&self, author: usize, index: usize) -> Option<u64> {
        let due_ns = self.shared.due_ns[author].get(index)?.load(Ordering::Acquire).checked_sub(1)?;
        self.shared.schedule.measures(due_ns).then_some(due_ns)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use keepstep_loadgen::schedule::Lengths;

    use super::*;
    use crate::arguments::{Arguments, Target};
    use crate::connection::Subscription;
    use crate::event::Payloads;

    /// Acknowledges everything and delivers what it is told to: at once, or nothing but the first answer before the
    /// measured phase is over.
    struct Pretended {
        waiting: VecDeque<usize>,
        delivered: Vec<Came>,
        stalls: Option<Arc<Shared>>,
    }

    impl Connection for Pretended {
        type Fleet = ();

        async fn prepare(_: &Arguments, _: &Target, _: Arc<Payloads>) -> Result<()> {
            Ok(())
        }

        async fn open(_: Arc<()>, _: &Target, _: usize, _: Subscription) -> Result<Self> {
            bail!("made by the tests")
        }

        fn publish(&mut self, index: usize) -> Result<()> {
            self.waiting.push_back(index);
            Ok(())
        }

        async fn flush(&mut self) -> Result<()> {
            Ok(())
        }

        async fn receive(&mut self, came: &mut Vec<Came>) -> Result<()> {
            if let Some(shared) = &self.stalls
                && self.waiting.front().is_some_and(|&index| index > 0)
            {
                shared.schedule.stopped().await;
            }
            came.append(&mut self.delivered);
            came.extend(self.waiting.drain(..).map(Came::Acknowledged));
            if came.is_empty() { std::future::pending().await } else { Ok(()) }
        }
    }

    fn shared(connections: usize, finish: Duration) -> Result<Arc<Shared>> {
        let [warm_up, settle, measured] = [Duration::ZERO, Duration::ZERO, Duration::from_secs(60)];
        let schedule = Schedule::begin(Lengths { warm_up, settle, measured, finish }, None, connections, 0);
        Ok(Arc::new(Shared::new(schedule, connections, 5)?))
    }

    #[test]
    fn what_a_stalled_server_holds_up_beyond_the_end_is_sent_and_counts() -> Result<()> {
        const EVENTS: usize = 60_000; // a minute's, however late the pacing thread begins
        let [warm_up, settle] = [Duration::ZERO, Duration::ZERO];
        let [measured, finish] = [Duration::from_millis(20), Duration::from_secs(60)];
        let schedule = Schedule::begin(Lengths { warm_up, settle, measured, finish }, Some(1_000.0), 1, 1);
        let shared = Arc::new(Shared::new(schedule, 1, EVENTS)?);
        let pacing = Arc::clone(&shared);
        let pacer = std::thread::spawn(move || pacing.schedule.pace(&pacing.wakers));
        let stalls = Some(Arc::clone(&shared));
        let pretended = Pretended { waiting: VecDeque::new(), delivered: Vec::new(), stalls };
        let worker = Worker::new(Arc::clone(&shared), 0, pretended, 1, false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let found = runtime.block_on(worker.run()).measured;
        assert!(pacer.join().is_ok() && found.errors.is_empty(), "{:?}", found.errors);
        let due = (0..EVENTS).map(|paced| shared.schedule.due_ns(0, Some(paced), 0));
        let sent = due.clone().take_while(|&due_ns| due_ns < shared.schedule.stop_ns()).count();
        let measured = due.filter(|&due_ns| shared.schedule.measures(due_ns)).count();
        assert!(measured >= 19, "{measured}");
        assert_eq!(found.published, 1 + sent as u64);
        let latencies = serde_json::to_value(shared.latencies.acknowledge.milliseconds())?;
        assert_eq!(latencies["count"], measured);
        Ok(())
    }

    fn run(delivered: Vec<Came>, connections: usize, subscribed: bool) -> Result<Observed> {
        let shared = shared(connections, Duration::ZERO)?;
        for other in 1..connections {
            shared.acknowledged[other].store(2, Ordering::Release);
            shared.publishing[0].fetch_sub(1, Ordering::AcqRel);
        }
        let worker =
            Worker::new(shared, 0, Pretended { waiting: VecDeque::new(), delivered, stalls: None }, 2, subscribed);
        Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(worker.run()))
    }

    #[test]
    fn a_connection_publishes_all_it_has_and_waits_for_every_answer() -> Result<()> {
        let measured = run(Vec::new(), 1, false)?.measured;
        assert_eq!((measured.published, measured.acknowledged_in_all), (5, 5));
        assert!(measured.errors.is_empty());
        Ok(())
    }

    #[test]
    fn what_others_published_and_what_is_missing_of_it_is_counted() -> Result<()> {
        let others = [(1, 0), (1, 1), (2, 0), (2, 1)].map(|(author, index)| Came::Delivered(author, index));
        assert_eq!(run(others.into(), 3, true)?.faults, Faults::default());
        let some = [(1, 1), (1, 0), (1, 0), (2, 1)].map(|(author, index)| Came::Delivered(author, index));
        let observed = run(some.into(), 3, true)?;
        assert_eq!(observed.measured.delivered_in_all, 3);
        assert_eq!(observed.faults, Faults { lost: 1, duplicates: 1, out_of_order: 1 });
        Ok(())
    }

    #[test]
    fn a_refusal_and_what_does_not_belong_here_are_errors() -> Result<()> {
        for wrong in [Came::Refused("blocked".into()), Came::Delivered(7, 0), Came::Acknowledged(9)] {
            assert_eq!(run(vec![wrong], 3, true)?.measured.errors.len(), 1);
        }
        Ok(())
    }
}
