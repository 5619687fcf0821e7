//! When what is sent: the phases of a run, and the open loop's due times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long the pacing thread sleeps at most before it looks whether the run has ended.
const PACING_SLEEP_MAX: Duration = Duration::from_millis(50);

/// A run's phases: warm-up, measured, finishing. Times are nanoseconds since its start.
pub struct Schedule {
    start: Instant,
    /// When the measured phase begins.
    pub measured_from_ns: u64,
    /// No publish is sent from here on; moved forward when a connection has nothing left to send.
    stop_ns: AtomicU64,
    /// How long what is missing in the end is waited for.
    pub finish: Duration,
    /// Told when `stop_ns` moved.
    pub stopped_early: Notify,
    /// Nanoseconds from one publish message to the next over all connections; `None` in a closed loop.
    interval_ns: Option<f64>,
    connections: usize,
}

impl Schedule {
    /// Starts now.
    pub fn begin(
        warm_up: Duration,
        measured: Duration,
        finish: Duration,
        frames_per_s: Option<f64>,
        connections: usize,
    ) -> Self {
        Self {
            start: Instant::now(),
            measured_from_ns: nanoseconds(warm_up),
            stop_ns: AtomicU64::new(nanoseconds(warm_up + measured)),
            finish,
            stopped_early: Notify::new(),
            interval_ns: frames_per_s.map(|rate| 1e9 / rate),
            connections,
        }
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    /// From when on nothing is sent.
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
        self.stopped_early.notify_one();
    }

    /// Whether a time lies in the measured phase.
    pub fn measures(&self, ns: u64) -> bool {
        (self.measured_from_ns..self.stop_ns()).contains(&ns)
    }

    /// When a connection's next publish message is due; now in a closed loop.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a run lasts at most days")]
    #[expect(clippy::cast_precision_loss, reason = "fewer messages than 2^52")]
    pub fn due_ns(&self, connection: usize, frame: usize, now_ns: u64) -> u64 {
        self.interval_ns.map_or(now_ns, |interval| ((frame * self.connections + connection) as f64 * interval) as u64)
    }

    /// Wakes each connection when a message of it is due, on a thread of its own: timers of the runtime are a
    /// millisecond coarse. Returns at once in a closed loop.
    pub fn pace(&self, wakers: &[Arc<Notify>]) {
        if self.interval_ns.is_none() {
            return;
        }
        let mut frame = 0;
        loop {
            for (connection, waker) in wakers.iter().enumerate() {
                let due_ns = self.due_ns(connection, frame, 0);
                if !self.wait_until(due_ns) {
                    return;
                }
                waker.notify_one();
            }
            frame += 1;
        }
    }

    /// Whether that time comes before the run stops sending.
    fn wait_until(&self, due_ns: u64) -> bool {
        loop {
            let now_ns = self.now_ns();
            if due_ns >= self.stop_ns() || now_ns >= self.stop_ns() {
                return false;
            }
            match due_ns.checked_sub(now_ns) {
                None | Some(0) => return true,
                Some(rest) => std::thread::sleep(Duration::from_nanos(rest).min(PACING_SLEEP_MAX)),
            }
        }
    }
}

/// Whole nanoseconds of a time.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(frames_per_s: Option<f64>) -> Schedule {
        let second = Duration::from_secs(1);
        Schedule::begin(second, second, second, frames_per_s, 2)
    }

    #[test]
    fn an_open_loop_spreads_its_messages_evenly_over_the_connections() {
        let schedule = schedule(Some(1_000.0));
        let due: Vec<u64> =
            [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(connection, frame)| schedule.due_ns(connection, frame, 99)).into();
        assert_eq!(due, [0, 1_000_000, 2_000_000, 3_000_000]);
    }

    #[test]
    fn in_a_closed_loop_a_message_is_due_when_there_is_room() {
        let schedule = schedule(None);
        assert_eq!(schedule.due_ns(1, 7, 99), 99);
        schedule.pace(&[]);
    }

    #[test]
    fn running_out_of_events_ends_the_measured_phase() {
        let schedule = schedule(None);
        assert!(schedule.measures(1_500_000_000));
        assert!(!schedule.measures(500_000_000));
        schedule.stop_now();
        assert!(!schedule.measures(1_500_000_000));
        assert!(schedule.stop_ns() < 1_000_000_000);
    }

    #[test]
    fn pacing_wakes_every_connection_whose_message_is_due() {
        let second = Duration::from_millis(20);
        let schedule = Schedule::begin(Duration::ZERO, second, second, Some(1_000.0), 2);
        let wakers = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        schedule.pace(&wakers);
        assert!(schedule.now_ns() >= 18_000_000);
    }
}
