//! Devices that come and go: upgrade, mutual handshake, ready, goodbye, closed; and the next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keepstep_loadgen::measured::{Latencies, Milliseconds, phase};
use keepstep_loadgen::schedule::nanoseconds;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::arguments::{Arguments, DeviceUrl};
use crate::connection::Connection;
use crate::fleet;
use crate::identity::Device;

/// The last line of a connecting run.
#[derive(Serialize)]
pub(crate) struct Report {
    version: &'static str,
    workload: &'static str,
    /// Devices that take turns.
    connections: usize,
    devices_per_user: usize,
    at_once: usize,
    suite: u64,
    measured_s: f64,
    /// Connections that were closed again in the measured phase.
    connected: u64,
    connected_per_s: f64,
    /// From the begin of TCP's handshake until Ready was opened.
    ready_ms: Milliseconds,
    errors: BTreeMap<String, u64>,
}

impl Report {
    /// Nothing went wrong.
    pub(crate) fn clean(&self) -> bool {
        self.errors.is_empty()
    }
}

/// What all that connect share.
struct Turns {
    target: DeviceUrl,
    devices: Vec<Device>,
    suite: u64,
    /// How many take turns, each with devices of its own: no device connects while it still leaves.
    at_once: usize,
    measured: std::ops::Range<Instant>,
    /// From a connection's begin to its Ready, where that came in the measured phase.
    ready: Latencies,
}

/// What one of them counted.
#[derive(Default)]
struct Measured {
    connected: u64,
    errors: BTreeMap<String, u64>,
}

/// Devices take turns in a fixed order, so that a server that keeps fewer of them in memory than there are finds none.
pub(crate) async fn run(arguments: &Arguments, time_ms: u64) -> Result<Report> {
    let target = arguments.device_address()?;
    phase("connecting");
    let users = fleet::enrol(arguments, &target, time_ms).await.context("setting up users and devices")?;
    let devices = users.into_iter().flat_map(|user| user.devices).collect();
    phase("warming up");
    let from = Instant::now() + Duration::from_secs(arguments.pace.warm_up_s);
    let until = from + Duration::from_secs(arguments.pace.duration_s);
    let at_once = arguments.at_once.min(arguments.connections);
    let (suite, measured, ready) = (arguments.suite, from..until, Latencies::new()?);
    let turns = Arc::new(Turns { target, devices, suite, at_once, measured, ready });
    let mut tasks = JoinSet::new();
    for first in 0..at_once {
        tasks.spawn(take_turns(Arc::clone(&turns), first));
    }
    tokio::time::sleep_until(from.into()).await;
    phase("measuring");
    tokio::time::sleep_until(until.into()).await;
    phase("measured");

    let mut all = Measured::default();
    while let Some(measured) = tasks.join_next().await {
        let measured = measured?;
        all.connected += measured.connected;
        for (what, count) in measured.errors {
            *all.errors.entry(what).or_default() += count;
        }
    }
    let measured_s = (until - from).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "connections of a run")]
    let connected_per_s = all.connected as f64 / measured_s;
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        workload: arguments.workload.name(),
        connections: arguments.connections,
        devices_per_user: arguments.devices_per_user(),
        at_once: arguments.at_once,
        suite: arguments.suite,
        measured_s,
        connected: all.connected,
        connected_per_s,
        ready_ms: turns.ready.milliseconds(),
        errors: all.errors,
    })
}

async fn take_turns(turns: Arc<Turns>, first: usize) -> Measured {
    let mut measured = Measured::default();
    for device in turns.devices.iter().skip(first).step_by(turns.at_once).cycle() {
        let begin = Instant::now();
        if begin >= turns.measured.end {
            break;
        }
        match come_and_go(&turns, device).await {
            Ok(ready) => {
                if turns.measured.contains(&Instant::now()) {
                    measured.connected += 1;
                    turns.ready.record(0, nanoseconds(ready - begin), 1);
                }
            }
            Err(error) => *measured.errors.entry(format!("{error:#}")).or_default() += 1,
        }
    }
    measured
}

/// When it was ready.
async fn come_and_go(turns: &Turns, device: &Device) -> Result<Instant> {
    let connection = Connection::open(&turns.target, device, turns.suite).await?;
    let ready = Instant::now();
    connection.leave().await?;
    Ok(ready)
}
