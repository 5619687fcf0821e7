//! What a run measured, as JSON.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::schedule::WarmUp;

const MICROSECONDS_PER_MS: f64 = 1_000.0;

/// Tells whoever reads the output that a phase begins, so that they can read counters then.
pub fn phase(name: &str) {
    println!("{}", serde_json::json!({ "phase": name }));
}

/// Latencies in microseconds, three significant digits.
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new(3)?))
    }

    /// Counts `count` events of one latency.
    pub fn record(&mut self, from_ns: u64, to_ns: u64, count: u64) -> anyhow::Result<()> {
        self.0.record_n(to_ns.saturating_sub(from_ns) / 1_000, count)?;
        Ok(())
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.0.add(&other.0)?;
        Ok(())
    }

    /// Their percentiles.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a run")]
    pub fn milliseconds(&self) -> Milliseconds {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / MICROSECONDS_PER_MS;
        Milliseconds {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.0.max() as f64 / MICROSECONDS_PER_MS,
            count: self.0.len(),
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

/// What one connection, or all together, measured.
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
    /// From when an event was due (open loop) or sent (closed loop) to its acknowledgement.
    pub acknowledge: Latencies,
    /// From the same moment to its arrival on another device.
    pub deliver: Latencies,
    /// How late it was sent: the generator's own delay and that of a full window.
    pub late: Latencies,
    /// What went wrong, and how often.
    pub errors: BTreeMap<String, u64>,
}

impl Measured {
    /// Nothing yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            published: 0,
            acknowledged_in_all: 0,
            delivered_in_all: 0,
            acknowledged: 0,
            delivered: 0,
            acknowledge: Latencies::new()?,
            deliver: Latencies::new()?,
            late: Latencies::new()?,
            errors: BTreeMap::new(),
        })
    }

    /// Counts what went wrong.
    pub fn error(&mut self, what: impl Into<String>) {
        *self.errors.entry(what.into()).or_default() += 1;
    }

    /// Adds another connection's measurement.
    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.published += other.published;
        self.acknowledged_in_all += other.acknowledged_in_all;
        self.delivered_in_all += other.delivered_in_all;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.acknowledge.add(&other.acknowledge)?;
        self.deliver.add(&other.deliver)?;
        self.late.add(&other.late)?;
        for (what, count) in &other.errors {
            *self.errors.entry(what.clone()).or_default() += count;
        }
        Ok(())
    }

    /// What it comes to over so many seconds, which began like that in an open loop.
    #[expect(clippy::cast_precision_loss, reason = "event counts of a run")]
    pub fn totals(self, measured_s: f64, warm_up: Option<WarmUp>) -> Totals {
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
            acknowledge_ms: self.acknowledge.milliseconds(),
            deliver_ms: self.deliver.milliseconds(),
            late_ms: self.late.milliseconds(),
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
        let mut latencies = Latencies::new()?;
        latencies.record(0, 1_000_000, 98)?;
        latencies.record(0, 50_000_000, 2)?;
        let found = latencies.milliseconds();
        assert!((found.p50 - 1.0).abs() < 0.01 && (found.p99 - 50.0).abs() < 0.1);
        assert_eq!(found.count, 100);
        Ok(())
    }

    #[test]
    fn measurements_add_up() -> anyhow::Result<()> {
        let mut all = Measured::new()?;
        for _ in 0..2 {
            let mut one = Measured::new()?;
            one.published = 5;
            one.acknowledged = 3;
            one.delivered = 4;
            one.acknowledge.record(0, 2_000, 3)?;
            one.error("unavailable");
            all.add(&one)?;
        }
        assert_eq!((all.published, all.acknowledged, all.delivered), (10, 6, 8));
        assert_eq!(all.errors, BTreeMap::from([("unavailable".to_owned(), 2)]));
        let totals = all.totals(2.0, None);
        assert_eq!((totals.acknowledge_ms.count, totals.clean()), (6, false));
        assert!((totals.acknowledged_per_s - 3.0).abs() < 1e-9);
        Ok(())
    }
}
