//! What a run measured, as JSON.

use std::collections::BTreeMap;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

const MICROSECONDS_PER_MS: f64 = 1_000.0;

/// What one connection, or all together, measured.
pub(crate) struct Measured {
    pub(crate) published: u64,
    pub(crate) acknowledged_in_all: u64,
    pub(crate) delivered_in_all: u64,
    /// In the measured phase, as is `delivered`.
    pub(crate) acknowledged: u64,
    pub(crate) delivered: u64,
    /// Acknowledged, and not delivered to one who should have it; more than once; after a later one of its author.
    pub(crate) lost: u64,
    pub(crate) duplicates: u64,
    pub(crate) out_of_order: u64,
    /// Microseconds, three significant digits: from due (open loop) or sent (closed loop).
    pub(crate) acknowledge: Histogram<u64>,
    pub(crate) deliver: Histogram<u64>,
    pub(crate) late: Histogram<u64>,
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Measured {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            published: 0,
            acknowledged_in_all: 0,
            delivered_in_all: 0,
            acknowledged: 0,
            delivered: 0,
            lost: 0,
            duplicates: 0,
            out_of_order: 0,
            acknowledge: Histogram::new(3)?,
            deliver: Histogram::new(3)?,
            late: Histogram::new(3)?,
            errors: BTreeMap::new(),
        })
    }

    pub(crate) fn error(&mut self, what: impl Into<String>) {
        *self.errors.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.published += other.published;
        self.acknowledged_in_all += other.acknowledged_in_all;
        self.delivered_in_all += other.delivered_in_all;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicates += other.duplicates;
        self.out_of_order += other.out_of_order;
        self.acknowledge.add(&other.acknowledge)?;
        self.deliver.add(&other.deliver)?;
        self.late.add(&other.late)?;
        for (what, count) in &other.errors {
            *self.errors.entry(what.clone()).or_default() += count;
        }
        Ok(())
    }
}

/// Latency in milliseconds over `count` events.
#[derive(Debug, Serialize)]
struct Milliseconds {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
    count: u64,
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a run")]
fn milliseconds(latencies: &Histogram<u64>) -> Milliseconds {
    let at = |quantile| latencies.value_at_quantile(quantile) as f64 / MICROSECONDS_PER_MS;
    Milliseconds {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: latencies.max() as f64 / MICROSECONDS_PER_MS,
        count: latencies.len(),
    }
}

/// The last line that the program prints.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Length of the measured phase; shorter than asked for where the prepared events were used up.
    measured_s: f64,
    connections: usize,
    published: u64,
    acknowledged_in_all: u64,
    delivered_in_all: u64,
    acknowledged: u64,
    delivered: u64,
    acknowledged_per_s: f64,
    delivered_per_s: f64,
    lost: u64,
    duplicates: u64,
    out_of_order: u64,
    acknowledge_ms: Milliseconds,
    deliver_ms: Milliseconds,
    late_ms: Milliseconds,
    errors: BTreeMap<String, u64>,
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "event counts of a run")]
    pub(crate) fn new(connections: usize, measured: &Measured, measured_s: f64) -> Self {
        Self {
            measured_s,
            connections,
            published: measured.published,
            acknowledged_in_all: measured.acknowledged_in_all,
            delivered_in_all: measured.delivered_in_all,
            acknowledged: measured.acknowledged,
            delivered: measured.delivered,
            acknowledged_per_s: measured.acknowledged as f64 / measured_s,
            delivered_per_s: measured.delivered as f64 / measured_s,
            lost: measured.lost,
            duplicates: measured.duplicates,
            out_of_order: measured.out_of_order,
            acknowledge_ms: milliseconds(&measured.acknowledge),
            deliver_ms: milliseconds(&measured.deliver),
            late_ms: milliseconds(&measured.late),
            errors: measured.errors.clone(),
        }
    }

    /// Nothing went wrong in the generator or was refused; what the peer lost is its result, not an error.
    pub(crate) fn clean(&self) -> bool {
        self.errors.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_add_up() -> Result<()> {
        let mut all = Measured::new()?;
        for _ in 0..2 {
            let mut one = Measured::new()?;
            one.acknowledged = 3;
            one.lost = 1;
            one.acknowledge.record_n(2_000, 3)?;
            one.error("refused");
            all.add(&one)?;
        }
        let report = Report::new(1, &all, 2.0);
        assert_eq!((report.acknowledged, report.lost, report.acknowledge_ms.count), (6, 2, 6));
        assert!((report.acknowledged_per_s - 3.0).abs() < 1e-9 && (report.acknowledge_ms.p50 - 2.0).abs() < 0.01);
        assert_eq!(report.errors, BTreeMap::from([("refused".to_owned(), 2)]));
        assert!(!report.clean());
        Ok(())
    }
}
