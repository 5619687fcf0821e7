//! What a run on a peer measured, as JSON.

use keepstep_loadgen::measured::{EventLatencies, Measured, Totals};
use keepstep_loadgen::schedule::WarmUp;
use serde::Serialize;

/// What a peer did not do as it should: its result, and no error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Faults {
    /// Acknowledged, and not delivered to one who should have it.
    pub(crate) lost: u64,
    /// Delivered more than once.
    pub(crate) duplicates: u64,
    /// Delivered after a later one of its author.
    pub(crate) out_of_order: u64,
}

/// What one connection, or all together, observed.
#[derive(Default)]
pub(crate) struct Observed {
    pub(crate) measured: Measured,
    pub(crate) faults: Faults,
}

impl Observed {
    pub(crate) fn add(&mut self, other: &Self) {
        self.faults.lost += other.faults.lost;
        self.faults.duplicates += other.faults.duplicates;
        self.faults.out_of_order += other.faults.out_of_order;
        self.measured.add(&other.measured);
    }
}

/// The last line that the program prints.
#[derive(Serialize)]
pub(crate) struct Report {
    connections: usize,
    #[serde(flatten)]
    totals: Totals,
    #[serde(flatten)]
    faults: Faults,
}

impl Report {
    pub(crate) fn new(
        connections: usize,
        observed: Observed,
        latencies: &EventLatencies,
        measured_s: f64,
        warm_up: Option<WarmUp>,
    ) -> Self {
        Self { connections, totals: observed.measured.totals(latencies, measured_s, warm_up), faults: observed.faults }
    }

    /// Nothing went wrong in the generator or was refused.
    pub(crate) fn clean(&self) -> bool {
        self.totals.clean()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;

    #[test]
    fn what_a_peer_lost_is_no_error() -> Result<()> {
        let mut all = Observed::default();
        for _ in 0..2 {
            let mut one = Observed::default();
            one.measured.acknowledged = 3;
            one.faults = Faults { lost: 1, duplicates: 2, out_of_order: 3 };
            all.add(&one);
        }
        assert_eq!(all.faults, Faults { lost: 2, duplicates: 4, out_of_order: 6 });
        let report = Report::new(1, all, &EventLatencies::new()?, 2.0, None);
        assert!(report.clean());
        let written = serde_json::to_value(&report)?;
        assert_eq!((&written["acknowledged"], &written["lost"]), (&6.into(), &2.into()));
        Ok(())
    }
}
