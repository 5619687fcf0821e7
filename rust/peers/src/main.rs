//! The load generator for other servers: what keepstep's own does, in their protocols.
//!
//! The same rules hold: events are made before the clock starts, an open loop counts latency from when an event was
//! due, and whatever is delivered is compared with what was published.

mod arguments;
mod centrifugo;
mod connection;
mod event;
mod load;
mod nats;
mod nostr;
mod report;
mod websocket;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use keepstep_loadgen::measured::{EventLatencies, phase};
use tokio::task::JoinSet;

use arguments::{Arguments, Peer, Target, Workload};
use connection::{Came, Connection, Subscription};
use event::{Arrived, Payloads};
use load::{Shared, Worker};
use report::{Faults, Observed, Report};

/// How long whoever reads the output has for reading counters when a phase begins.
const COUNTERS_READ: Duration = Duration::from_millis(1_500);
/// What a silent connection may still cost settles in this time.
const IDLE: Duration = Duration::from_secs(3);
const CATCH_UP_WINDOW: usize = 1_024;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("keepstep-peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the run was without errors.
fn run(arguments: &Arguments) -> Result<bool> {
    let target = arguments.check()?;
    let runtime = arguments.pace.runtime()?;
    let report = runtime.block_on(async {
        match arguments.peer {
            Peer::Nats => measure::<nats::Nats>(arguments, &target).await,
            Peer::Nostr => measure::<nostr::Nostr>(arguments, &target).await,
            Peer::Centrifugo => measure::<centrifugo::Centrifugo>(arguments, &target).await,
        }
    })?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(report.clean())
}

async fn measure<C: Connection>(arguments: &Arguments, target: &Target) -> Result<Report> {
    phase("preparing");
    let payloads = Arc::new(Payloads::new(arguments.payload_bytes)?);
    let fleet = Arc::new(C::prepare(arguments, target, payloads).await.context("preparing")?);
    match arguments.workload {
        Workload::Publish | Workload::Relay => load::<C>(arguments, target, &fleet).await,
        Workload::CatchUp => catch_up::<C>(arguments, target, &fleet).await,
        Workload::Idle => idle::<C>(arguments, target, &fleet).await,
    }
}

async fn open_all<C: Connection>(
    arguments: &Arguments,
    target: &Target,
    fleet: &Arc<C::Fleet>,
    subscription: Subscription,
) -> Result<Vec<C>> {
    let mut connections = Vec::with_capacity(arguments.connections);
    for number in 0..arguments.connections {
        let opened = C::open(Arc::clone(fleet), target, number, subscription).await;
        connections.push(opened.with_context(|| format!("connection {number}"))?);
    }
    Ok(connections)
}

/// Publishing, with or without subscribers.
async fn load<C: Connection>(arguments: &Arguments, target: &Target, fleet: &Arc<C::Fleet>) -> Result<Report> {
    phase("connecting");
    let subscribed = arguments.workload == Workload::Relay;
    let subscription = if subscribed { Subscription::Others } else { Subscription::None };
    let connections = open_all::<C>(arguments, target, fleet, subscription).await?;
    phase("warming up");
    let schedule =
        arguments.pace.begin(arguments.connections, 1, arguments.connections * arguments.pace.first_frames(0));
    let shared = Arc::new(Shared::new(schedule, arguments.connections, arguments.events_per_connection())?);
    let mut tasks = JoinSet::new();
    for (number, connection) in connections.into_iter().enumerate() {
        tasks.spawn(Worker::new(Arc::clone(&shared), number, connection, arguments.window, subscribed).run());
    }
    let pacing = Arc::clone(&shared);
    std::thread::spawn(move || pacing.schedule.pace(&pacing.wakers));

    let schedule = &shared.schedule;
    schedule.measuring().await;
    phase("measuring");
    schedule.stopped().await;
    phase("measured");
    let mut all = Observed::default();
    while let Some(observed) = tasks.join_next().await {
        all.add(&observed?);
    }
    let measured_s = schedule.measured_s();
    ensure!(measured_s > 0.0, "the prepared events were used up in the warm-up: raise --events-max");
    Ok(Report::new(arguments.connections, all, &shared.latencies, measured_s, schedule.warm_up()))
}

/// Stores events, then reads all of them on a new connection.
async fn catch_up<C: Connection>(arguments: &Arguments, target: &Target, fleet: &Arc<C::Fleet>) -> Result<Report> {
    phase("storing");
    let events = arguments.events_per_connection();
    let mut author = C::open(Arc::clone(fleet), target, 0, Subscription::None).await?;
    let (mut sent, mut answered, mut came) = (0, 0, Vec::new());
    while answered < events {
        while sent < events && sent - answered < CATCH_UP_WINDOW {
            author.publish(sent)?;
            sent += 1;
        }
        author.flush().await?;
        author.receive(&mut came).await?;
        for one in came.drain(..) {
            ensure!(matches!(one, Came::Acknowledged(_)), "{one:?}");
            answered += 1;
        }
    }
    drop(author);

    phase("measuring");
    tokio::time::sleep(COUNTERS_READ).await;
    let begin = Instant::now();
    let everything = Subscription::Everything { author: 0 };
    let mut reader = C::open(Arc::clone(fleet), target, 1, everything).await?;
    let mut arrived = Arrived::default();
    let mut ended = false;
    while arrived.count < events as u64 && !ended {
        reader.flush().await?;
        reader.receive(&mut came).await?;
        for one in came.drain(..) {
            match one {
                Came::Delivered(_, index) => ended |= !arrived.note(index),
                Came::CaughtUp => ended = true,
                other => anyhow::bail!("{other:?}"),
            }
        }
    }
    let took = begin.elapsed();
    phase("measured");
    tokio::time::sleep(COUNTERS_READ).await;
    let mut observed = Observed::default();
    let measured = &mut observed.measured;
    (measured.published, measured.acknowledged_in_all) = (events as u64, events as u64);
    (measured.delivered, measured.delivered_in_all) = (arrived.count, arrived.count);
    let (duplicates, out_of_order) = (arrived.duplicates, arrived.out_of_order);
    observed.faults = Faults { lost: events as u64 - arrived.count, duplicates, out_of_order };
    Ok(Report::new(1, observed, &EventLatencies::new()?, took.as_secs_f64(), None))
}

/// Opens connections and lets them be: what they cost in memory is for the reader of the output to see.
async fn idle<C: Connection>(arguments: &Arguments, target: &Target, fleet: &Arc<C::Fleet>) -> Result<Report> {
    phase("measuring");
    tokio::time::sleep(COUNTERS_READ).await;
    let begin = Instant::now();
    let connections = open_all::<C>(arguments, target, fleet, Subscription::Others).await?;
    let took = begin.elapsed();
    tokio::time::sleep(IDLE).await;
    phase("measured");
    tokio::time::sleep(COUNTERS_READ).await;
    Ok(Report::new(connections.len(), Observed::default(), &EventLatencies::new()?, took.as_secs_f64(), None))
}
