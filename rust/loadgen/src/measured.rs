//! What a run measured, as JSON.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::schedule::WarmUp;

const MICROSECONDS_PER_MS: f64 = 1_000.0;
/// A day: longer ones count as that.
const LATENCY_US_MAX: u64 = 24 * 60 * 60 * 1_000_000;

/// Tells whoever reads the output that a phase begins, so that they can read counters then.
pub fn phase(name: &str) {
    println!("{}", serde_json::json!({ "phase": name }));
}

/// Latencies in microseconds, three significant digits, of all connections together.
///
/// One for each connection would be some hundred KiB for each, made and copied anew whenever a longer latency came: work
/// of the generator in the measured phase that looked like the server's latency.
pub struct Latencies(Mutex<Histogram<u64>>);

impl Latencies {
    /// None yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Mutex::new(Histogram::new_with_max(LATENCY_US_MAX, 3)?)))
    }

    /// Counts `count` events of one latency.
    pub fn record(&self, from_ns: u64, to_ns: u64, count: u64) {
        let mut histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record_n(to_ns.saturating_sub(from_ns) / 1_000, count);
    }

    /// Their percentiles.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a run")]
    pub fn milliseconds(&self) -> Milliseconds {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / MICROSECONDS_PER_MS;
        Milliseconds {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / MICROSECONDS_PER_MS,
            count: histogram.len(),
        }
    }
}

/// Latency in milliseconds over `count` events.
#[derive(Debug, PartialEq, Serialize)]
pub struct Milliseconds {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
    count: u64,
}

/// How long the events of all connections took that were due in the measured phase.
pub struct EventLatencies {
    /// From when an event was due (open loop) or sent (closed loop) to its acknowledgement.
    pub acknowledge: Latencies,
    /// From the same moment to its arrival on another device.
    pub deliver: Latencies,
    /// How late it was sent: the generator's own delay and that of a full window.
    pub late: Latencies,
}

impl EventLatencies {
    /// None yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { acknowledge: Latencies::new()?, deliver: Latencies::new()?, late: Latencies::new()? })
    }
}

/// What one connection, or all together, counted.
#[derive(Default)]
pub struct Measured {
    /// Events published over the whole run.
    pub published: u64,
    /// Of them acknowledged as stored.
    pub acknowledged_in_all: u64,
    /// Of them delivered to others than their author.
    pub delivered_in_all: u64,
    /// Acknowledged in the measured phase.
    pub acknowledged: u64,
    /// Delivered in the measured phase.
    pub delivered: u64,
    /// What went wrong, and how often.
    pub errors: BTreeMap<String, u64>,
}

impl Measured {
    /// Counts what went wrong.
    pub fn error(&mut self, what: impl Into<String>) {
        *self.errors.entry(what.into()).or_default() += 1;
    }

    /// Adds what another connection counted.
    pub fn add(&mut self, other: &Self) {
        self.published += other.published;
        self.acknowledged_in_all += other.acknowledged_in_all;
        self.delivered_in_all += other.delivered_in_all;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        for (what, count) in &other.errors {
            *self.errors.entry(what.clone()).or_default() += count;
        }
    }

    /// What it comes to over so many seconds, which began like that in an open loop.
    #[expect(clippy::cast_precision_loss, reason = "event counts of a run")]
    pub fn totals(self, latencies: &EventLatencies, measured_s: f64, warm_up: Option<WarmUp>) -> Totals {
        Totals {
            measured_s,
            warm_up,
            published: self.published,
            acknowledged_in_all: self.acknowledged_in_all,
            delivered_in_all: self.delivered_in_all,
            acknowledged: self.acknowledged,
            delivered: self.delivered,
            acknowledged_per_s: self.acknowledged as f64 / measured_s,
            delivered_per_s: self.delivered as f64 / measured_s,
            acknowledge_ms: latencies.acknowledge.milliseconds(),
            deliver_ms: latencies.deliver.milliseconds(),
            late_ms: latencies.late.milliseconds(),
            errors: self.errors,
        }
    }
}

impl Totals {
    /// Nothing went wrong.
    pub fn clean(&self) -> bool {
        self.errors.is_empty()
    }
}

/// What all of them measured, as every generator reports it.
#[derive(Serialize)]
pub struct Totals {
    /// Length of the measured phase; shorter than asked for where the events that were made before were used up.
    measured_s: f64,
    /// Of an open loop.
    warm_up: Option<WarmUp>,
    published: u64,
    acknowledged_in_all: u64,
    delivered_in_all: u64,
    acknowledged: u64,
    delivered: u64,
    acknowledged_per_s: f64,
    delivered_per_s: f64,
    acknowledge_ms: Milliseconds,
    deliver_ms: Milliseconds,
    late_ms: Milliseconds,
    errors: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_weighted_by_events() -> anyhow::Result<()> {
        let latencies = Latencies::new()?;
        latencies.record(0, 1_000_000, 98);
        latencies.record(0, 50_000_000, 2);
        let found = latencies.milliseconds();
        assert!((found.p50 - 1.0).abs() < 0.01 && (found.p99 - 50.0).abs() < 0.1);
        assert_eq!(found.count, 100);
        Ok(())
    }

    #[test]
    fn a_latency_beyond_a_day_counts_as_the_longest() -> anyhow::Result<()> {
        let latencies = Latencies::new()?;
        latencies.record(0, u64::MAX, 1);
        let found = latencies.milliseconds();
        assert_eq!(found.count, 1);
        assert!(found.max >= 86_400_000.0);
        Ok(())
    }

    #[test]
    fn measurements_add_up() -> anyhow::Result<()> {
        let latencies = EventLatencies::new()?;
        let mut all = Measured::default();
        for _ in 0..2 {
            let mut one = Measured { published: 5, acknowledged: 3, delivered: 4, ..Measured::default() };
            latencies.acknowledge.record(0, 2_000, 3);
            one.error("unavailable");
            all.add(&one);
        }
        assert_eq!((all.published, all.acknowledged, all.delivered), (10, 6, 8));
        assert_eq!(all.errors, BTreeMap::from([("unavailable".to_owned(), 2)]));
        let totals = all.totals(&latencies, 2.0, None);
        assert_eq!((totals.acknowledge_ms.count, totals.clean()), (6, false));
        assert!((totals.acknowledged_per_s - 3.0).abs() < 1e-9);
        Ok(())
    }
}
