//! When what is sent: the phases of a run, and the open loop's due times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{Notify, watch};

/// How long the pacing thread sleeps at most before it looks whether the run has ended.
const PACING_SLEEP_MAX: Duration = Duration::from_millis(50);
/// How long it sleeps at least: each wake-up takes a core from those that are measured. A message may be sent so much
/// later than it is due, which counts into its latency.
const PACING_SLEEP_MIN: Duration = Duration::from_micros(200);
/// How often it looks whether the first messages are answered.
const FIRST_ANSWERS_EVERY: Duration = Duration::from_millis(1);
/// An open loop is steady while no more is unanswered than comes in this time.
const STEADY_NS: f64 = 1e8;
/// Of a time that is not known yet.
const NOT_YET: u64 = u64::MAX;

/// How long the phases of a run last.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// The same load before the measured phase.
    pub warm_up: Duration,
    /// Open loop: by how much the warm-up is longer at most, until the load is steady.
    pub settle: Duration,
    /// The measured phase.
    pub measured: Duration,
    /// How long the first answers, and what is missing in the end, are waited for.
    pub finish: Duration,
}

/// How an open loop's measured phase began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WarmUp {
    /// Seconds at the rate before it.
    seconds: f64,
    /// Messages that were due and had no answer then.
    unanswered: u64,
    /// That was no more than comes in a tenth of a second: what is measured is the rate, not a backlog of the start.
    steady: bool,
}

/// A run's phases: warm-up, measured, finishing. Times are nanoseconds since its start.
///
/// Connections may have first messages, which are sent at once; in an open loop each has one at least. The warm-up, and
/// in an open loop the rate, begin when these are answered: streams that are made and devices that are looked up for the
/// first time would otherwise hold up what comes after them. An open loop's measured phase begins after the warm-up, as
/// soon as the load is steady, and in any case after `settle` more: where the server does not keep up with the rate, the
/// measured latencies contain that.
pub struct Schedule {
    start: Instant,
    lengths: Lengths,
    /// When the first messages are answered, or were waited for long enough; `NOT_YET` until then.
    paced_from_ns: AtomicU64,
    /// When the measured phase begins; `NOT_YET` until that is known.
    measured_from_ns: AtomicU64,
    /// No publish is due from here on; moved forward when the measured phase begins or a connection has nothing left.
    stop_ns: AtomicU64,
    /// Told when one of these moved.
    moved: watch::Sender<()>,
    /// Publish messages that were answered.
    answered: AtomicU64,
    /// As the measured phase began.
    unanswered: AtomicU64,
    /// Nanoseconds from one publish message to the next over all connections; `None` in a closed loop.
    interval_ns: Option<f64>,
    connections: usize,
    /// Publish messages of all connections that are sent at once.
    first_messages: u64,
}

impl Schedule {
    /// Starts now, with so many first messages over all connections.
    pub fn begin(lengths: Lengths, frames_per_s: Option<f64>, connections: usize, first_messages: usize) -> Self {
        let Lengths { warm_up, settle, measured, finish } = lengths;
        let (paced_from_ns, measured_from_ns, latest) = if frames_per_s.is_none() && first_messages == 0 {
            (0, nanoseconds(warm_up), warm_up + measured)
        } else {
            (NOT_YET, NOT_YET, finish + warm_up + settle + measured)
        };
        Self {
            start: Instant::now(),
            lengths,
            paced_from_ns: AtomicU64::new(paced_from_ns),
            measured_from_ns: AtomicU64::new(measured_from_ns),
            stop_ns: AtomicU64::new(nanoseconds(latest)),
            moved: watch::Sender::new(()),
            answered: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            interval_ns: frames_per_s.map(|rate| 1e9 / rate),
            connections,
            first_messages: first_messages as u64,
        }
    }

    /// How long what is missing in the end is waited for.
    pub fn finish(&self) -> Duration {
        self.lengths.finish
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    /// From when on nothing is due.
    pub fn stop_ns(&self) -> u64 {
        self.stop_ns.load(Ordering::Acquire)
    }

    /// The moment of a time, for a timer.
    pub fn instant(&self, ns: u64) -> Instant {
        self.start + Duration::from_nanos(ns)
    }

    /// Ends the measured phase now, for all connections: one has nothing left to send.
    pub fn stop_now(&self) {
        self.stop_ns.fetch_min(self.now_ns(), Ordering::AcqRel);
        self.moved.send_replace(());
    }

    /// Whether a time lies in the measured phase.
    pub fn measures(&self, ns: u64) -> bool {
        (self.measured_from_ns.load(Ordering::Acquire)..self.stop_ns()).contains(&ns)
    }

    /// Seconds that were measured, once the run stopped sending.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a run")]
    pub fn measured_s(&self) -> f64 {
        self.stop_ns().saturating_sub(self.measured_from_ns.load(Ordering::Acquire)) as f64 / 1e9
    }

    /// How the measured phase of an open loop began.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds and messages of a run")]
    pub fn warm_up(&self) -> Option<WarmUp> {
        let interval_ns = self.interval_ns?;
        let measured_from_ns = self.measured_from_ns.load(Ordering::Acquire);
        let unanswered = self.unanswered.load(Ordering::Acquire);
        (measured_from_ns != NOT_YET).then(|| WarmUp {
            seconds: (measured_from_ns - self.paced_from_ns.load(Ordering::Acquire)) as f64 / 1e9,
            unanswered,
            steady: is_steady(unanswered, interval_ns),
        })
    }

    /// Returns when the measured phase has begun, or the run stopped before. Cancel-safe.
    pub async fn measuring(&self) {
        self.reached(|| self.measured_from_ns.load(Ordering::Acquire).min(self.stop_ns())).await;
    }

    /// Returns when nothing is due any more. Cancel-safe.
    pub async fn stopped(&self) {
        self.reached(|| self.stop_ns()).await;
    }

    /// Returns at a time that may move.
    async fn reached(&self, at_ns: impl Fn() -> u64) {
        let mut moved = self.moved.subscribe();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.instant(at_ns()).into()) => return,
                _ = moved.changed() => {}
            }
        }
    }

    /// Counts a publish message that was answered.
    pub fn answered(&self) {
        self.answered.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether all first messages were answered in time.
    pub fn begun(&self) -> bool {
        self.answered.load(Ordering::Acquire) >= self.first_messages
    }

    /// When a connection's next publish message is due: `paced` counts those after its first ones, for which it is `None`.
    /// In a closed loop that is now, for those after the first ones as soon as the warm-up begins.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a run lasts at most days")]
    #[expect(clippy::cast_precision_loss, reason = "fewer messages than 2^52")]
    pub fn due_ns(&self, connection: usize, paced: Option<usize>, now_ns: u64) -> u64 {
        let paced_from_ns = self.paced_from_ns.load(Ordering::Acquire);
        match (self.interval_ns, paced) {
            (None, Some(_)) if paced_from_ns == NOT_YET => NOT_YET,
            (None, _) => now_ns,
            (Some(_), None) => 0,
            (Some(interval_ns), Some(paced)) => {
                let after_ns = ((paced * self.connections + connection) as f64 * interval_ns) as u64;
                paced_from_ns.saturating_add(after_ns)
            }
        }
    }

    /// Whether a message that is due at one time is to be sent at another.
    ///
    /// One that was due before the end is sent after it too, where the server held it up until then: without it the
    /// longest latencies of a server that does not keep up would be missing.
    pub fn sends(&self, due_ns: u64, now_ns: u64) -> bool {
        due_ns <= now_ns && due_ns < self.stop_ns()
    }

    /// Wakes each connection when a message of it is due, and begins the measured phase, on a thread of its own: timers
    /// of the runtime are a millisecond coarse. In a closed loop returns when the warm-up has begun.
    pub fn pace(&self, wakers: &[Arc<Notify>]) {
        if self.paced_from_ns.load(Ordering::Acquire) != NOT_YET {
            return;
        }
        self.wait_for_first_answers();
        let now_ns = self.now_ns();
        self.paced_from_ns.store(now_ns, Ordering::Release);
        let Some(interval_ns) = self.interval_ns else {
            return self.measure_from(now_ns + nanoseconds(self.lengths.warm_up), wakers);
        };
        let mut paced = 0;
        loop {
            for (connection, waker) in wakers.iter().enumerate() {
                let due_ns = self.due_ns(connection, Some(paced), 0);
                if !self.wait_until(due_ns, interval_ns, wakers) {
                    return;
                }
                waker.notify_one();
            }
            paced += 1;
        }
    }

    /// Returns when all first messages are answered, or the time for it is over.
    fn wait_for_first_answers(&self) {
        let until_ns = nanoseconds(self.lengths.finish).min(self.stop_ns());
        while !self.begun() && self.now_ns() < until_ns {
            std::thread::sleep(FIRST_ANSWERS_EVERY);
        }
    }

    /// Begins the measured phase where the warm-up is over; everybody is woken, for the end is known then.
    fn measure_when_steady(&self, now_ns: u64, interval_ns: f64, wakers: &[Arc<Notify>]) {
        if self.measured_from_ns.load(Ordering::Acquire) != NOT_YET {
            return;
        }
        let paced_ns = now_ns - self.paced_from_ns.load(Ordering::Acquire);
        let unanswered = self.unanswered_after(paced_ns, interval_ns);
        let Lengths { warm_up, settle, .. } = self.lengths;
        let longest_ns = nanoseconds(warm_up + settle);
        if paced_ns < nanoseconds(warm_up) || (paced_ns < longest_ns && !is_steady(unanswered, interval_ns)) {
            return;
        }
        self.unanswered.store(unanswered, Ordering::Release);
        self.measure_from(now_ns, wakers);
    }

    fn measure_from(&self, from_ns: u64, wakers: &[Arc<Notify>]) {
        self.stop_ns.fetch_min(from_ns + nanoseconds(self.lengths.measured), Ordering::AcqRel);
        self.measured_from_ns.store(from_ns, Ordering::Release);
        self.moved.send_replace(());
        for waker in wakers {
            waker.notify_one();
        }
    }

    /// Messages that are due so long after the rate began and have no answer.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a run lasts at most days")]
    #[expect(clippy::cast_precision_loss, reason = "fewer nanoseconds than 2^52")]
    fn unanswered_after(&self, paced_ns: u64, interval_ns: f64) -> u64 {
        let due = self.first_messages + (paced_ns as f64 / interval_ns) as u64;
        due.saturating_sub(self.answered.load(Ordering::Acquire))
    }

    /// Whether that time comes before the run stops sending.
    fn wait_until(&self, due_ns: u64, interval_ns: f64, wakers: &[Arc<Notify>]) -> bool {
        loop {
            let now_ns = self.now_ns();
            self.measure_when_steady(now_ns, interval_ns, wakers);
            if due_ns >= self.stop_ns() || now_ns >= self.stop_ns() {
                return false;
            }
            match due_ns.checked_sub(now_ns) {
                None | Some(0) => return true,
                Some(rest) => std::thread::sleep(Duration::from_nanos(rest).clamp(PACING_SLEEP_MIN, PACING_SLEEP_MAX)),
            }
        }
    }
}

/// Whether so many messages without an answer are no backlog.
#[expect(clippy::cast_precision_loss, reason = "fewer messages than 2^52")]
fn is_steady(unanswered: u64, interval_ns: f64) -> bool {
    unanswered as f64 <= (STEADY_NS / interval_ns).max(1.0)
}

/// Whole nanoseconds of a time.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINISH: Duration = Duration::from_millis(40);

    fn lengths(each: Duration) -> Lengths {
        Lengths { warm_up: each, settle: each, measured: each, finish: each }
    }

    fn schedule(frames_per_s: Option<f64>) -> Schedule {
        let first_messages = if frames_per_s.is_some() { 2 } else { 0 };
        Schedule::begin(lengths(Duration::from_secs(1)), frames_per_s, 2, first_messages)
    }

    /// A short run in which so many messages are answered before they are due, which is as if at once.
    fn paced(answered: usize) -> Schedule {
        let schedule =
            Schedule::begin(Lengths { finish: FINISH, ..lengths(Duration::from_millis(20)) }, Some(1_000.0), 2, 2);
        for _ in 0..answered {
            schedule.answered();
        }
        schedule.pace(&[Arc::new(Notify::new()), Arc::new(Notify::new())]);
        schedule
    }

    #[test]
    fn an_open_loop_spreads_its_messages_evenly_over_the_connections() {
        let schedule = schedule(Some(1_000.0));
        schedule.paced_from_ns.store(7_000_000, Ordering::Release);
        let due: Vec<u64> =
            [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(connection, n)| schedule.due_ns(connection, Some(n), 99)).into();
        assert_eq!(due, [7_000_000, 8_000_000, 9_000_000, 10_000_000]);
    }

    #[test]
    fn in_an_open_loop_first_messages_are_due_at_once_and_others_not_before_the_rate_begins() {
        let schedule = schedule(Some(1_000.0));
        assert_eq!([schedule.due_ns(0, None, 99), schedule.due_ns(1, None, 99)], [0, 0]);
        assert_eq!([schedule.due_ns(0, Some(0), 99), schedule.due_ns(1, Some(1), 99)], [NOT_YET, NOT_YET]);
    }

    #[test]
    fn in_a_closed_loop_a_message_is_due_when_there_is_room() {
        let schedule = schedule(None);
        assert_eq!(schedule.due_ns(1, Some(7), 99), 99);
        schedule.pace(&[]);
        assert_eq!(schedule.warm_up(), None);
    }

    #[test]
    fn a_closed_loop_with_first_messages_warms_up_when_they_are_answered() {
        let schedule = Schedule::begin(lengths(Duration::from_millis(20)), None, 2, 3);
        assert_eq!([schedule.due_ns(0, None, 99), schedule.due_ns(1, Some(0), 99)], [99, NOT_YET]);
        assert!(!schedule.measures(u64::MAX - 1) && !schedule.begun());
        for _ in 0..3 {
            schedule.answered();
        }
        schedule.pace(&[Arc::new(Notify::new())]);
        let paced_from_ns = schedule.paced_from_ns.load(Ordering::Acquire);
        assert!(schedule.begun() && schedule.warm_up().is_none());
        assert_eq!(schedule.due_ns(1, Some(0), 99), 99);
        assert_eq!([20, 39, 40].map(|ms| schedule.measures(paced_from_ns + ms * 1_000_000)), [true, true, false]);
        assert!((schedule.measured_s() - 0.02).abs() < 1e-9);
    }

    #[test]
    fn first_messages_of_a_closed_loop_without_an_answer_are_told() {
        let schedule = Schedule::begin(lengths(Duration::from_millis(20)), None, 2, 3);
        schedule.pace(&[]);
        assert!(!schedule.begun());
    }

    #[test]
    fn what_was_due_before_the_end_is_sent_after_it_too() {
        let schedule = schedule(Some(1_000.0));
        schedule.stop_ns.store(10, Ordering::Release);
        assert!(schedule.sends(9, 9) && schedule.sends(9, 1_000));
        assert!(!schedule.sends(9, 8) && !schedule.sends(10, 10) && !schedule.sends(NOT_YET, NOT_YET));
    }

    #[test]
    fn running_out_of_events_ends_the_measured_phase() {
        let schedule = schedule(None);
        assert!(schedule.measures(1_500_000_000));
        assert!(!schedule.measures(500_000_000));
        schedule.stop_now();
        assert!(!schedule.measures(1_500_000_000));
        assert!(schedule.stop_ns() < 1_000_000_000);
        assert!(schedule.measured_s() <= 0.0);
    }

    #[test]
    fn a_rate_that_is_answered_is_measured_right_after_the_warm_up() {
        let schedule = paced(1_000);
        let warm_up = schedule.warm_up();
        assert!(warm_up.is_some_and(|warm_up| warm_up.steady && warm_up.unanswered == 0 && warm_up.seconds >= 0.02));
        assert!((schedule.measured_s() - 0.02).abs() < 1e-9);
        assert!(schedule.paced_from_ns.load(Ordering::Acquire) < nanoseconds(FINISH));
        assert!(schedule.now_ns() >= schedule.paced_from_ns.load(Ordering::Acquire) + 38_000_000);
    }

    #[test]
    fn first_messages_that_nobody_answers_are_waited_for_so_long_and_no_longer() {
        let schedule = paced(0);
        assert!(schedule.paced_from_ns.load(Ordering::Acquire) >= nanoseconds(FINISH));
        assert!((schedule.measured_s() - 0.02).abs() < 1e-9);
    }

    #[test]
    fn a_backlog_makes_the_warm_up_longer_and_is_measured_where_it_stays() {
        // 10,000 a second are steady with 1,000 unanswered.
        let settle = Duration::from_millis(5);
        let schedule =
            Schedule::begin(Lengths { settle, ..lengths(Duration::from_millis(10)) }, Some(10_000.0), 1_001, 1_001);
        schedule.paced_from_ns.store(0, Ordering::Release);
        let begun = |ms: u64| {
            schedule.measure_when_steady(ms * 1_000_000, 1e5, &[]);
            schedule.warm_up()
        };
        assert_eq!([begun(9), begun(10), begun(14)], [None, None, None]);
        assert_eq!(begun(15), Some(WarmUp { seconds: 0.015, unanswered: 1_151, steady: false }));
        assert_eq!(begun(16), begun(15));
    }

    #[test]
    fn a_backlog_that_is_worked_off_ends_the_warm_up() {
        let schedule = Schedule::begin(lengths(Duration::from_millis(10)), Some(10_000.0), 1_001, 1_001);
        schedule.paced_from_ns.store(0, Ordering::Release);
        schedule.measure_when_steady(12_000_000, 1e5, &[]);
        assert_eq!(schedule.warm_up(), None);
        for _ in 0..200 {
            schedule.answered();
        }
        schedule.measure_when_steady(13_000_000, 1e5, &[]);
        assert_eq!(schedule.warm_up(), Some(WarmUp { seconds: 0.013, unanswered: 931, steady: true }));
        assert!(schedule.measures(13_000_000) && schedule.measures(22_999_999) && !schedule.measures(23_000_000));
    }

    #[tokio::test]
    async fn whoever_waits_for_a_phase_learns_that_it_moved() -> anyhow::Result<()> {
        let schedule = Arc::new(schedule(None));
        let (waiting, told) = (Arc::clone(&schedule), Arc::clone(&schedule));
        let waiter = tokio::spawn(async move { tokio::join!(waiting.measuring(), waiting.stopped()) });
        told.stop_now();
        waiter.await?;
        assert!(schedule.now_ns() < 1_000_000_000);
        Ok(())
    }
}
