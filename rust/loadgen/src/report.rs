//! The last line that a load of events prints.

use keepstep_loadgen::measured::Totals;
use serde::Serialize;

use crate::arguments::Arguments;

/// What was asked for, and what came of it.
#[derive(Serialize)]
pub(crate) struct Report {
    version: &'static str,
    workload: &'static str,
    #[serde(rename = "loop")]
    load: &'static str,
    rate: Option<f64>,
    connections: usize,
    events_per_frame: usize,
    payload_bytes: usize,
    window: usize,
    suite: u64,
    #[serde(flatten)]
    totals: Totals,
    /// Events with bad signatures that were refused to those who flood.
    bad_refused: u64,
}

impl Report {
    pub(crate) fn new(arguments: &Arguments, totals: Totals, bad_refused: u64) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            workload: arguments.workload.name(),
            load: if arguments.pace.rate.is_some() { "open" } else { "closed" },
            rate: arguments.pace.rate,
            connections: arguments.connections,
            events_per_frame: arguments.events_per_frame,
            payload_bytes: arguments.payload_bytes,
            window: arguments.window(),
            suite: arguments.suite,
            totals,
            bad_refused,
        }
    }

    /// Nothing went wrong.
    pub(crate) fn clean(&self) -> bool {
        self.totals.clean()
    }
}
