//! keepstep's load generator: authenticated devices that publish signed events over real connections.
//!
//! It measures a server without measuring itself: events are signed before the clock starts, an open loop counts
//! latency from when an event was due, and what is delivered is compared byte by byte with what was published.

mod arguments;
mod connection;
mod fleet;
mod handshake;
mod identity;
mod observations;
mod prepared;
mod report;
mod schedule;
mod wire;
mod workload;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::Parser;

use arguments::{Arguments, Workload};
use fleet::User;
use observations::{Observer, Writer};
use prepared::Prepared;
use report::{Measured, Report};
use schedule::Schedule;
use tokio::task::JoinSet;
use workload::{Plan, Shared, Worker};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("keepstep-loadgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the run was without errors.
fn run(arguments: &Arguments) -> Result<bool> {
    arguments.check()?;
    let writer = arguments.observations.as_deref().map(Writer::create).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(arguments.threads).enable_all().build()?;
    let (workers, measured_s) = runtime.block_on(measure(arguments))?;
    let mut measured = Measured::new()?;
    for worker in &workers {
        measured.add(&worker.measured)?;
    }
    if let Some(writer) = writer {
        write_observations(writer, &workers, arguments)?;
    }
    let report = Report::new(arguments, measured, measured_s);
    println!("{}", serde_json::to_string(&report)?);
    Ok(report.clean())
}

/// Connects, signs, and runs the load; returns the workers, the seconds measured.
async fn measure(arguments: &Arguments) -> Result<(Vec<Worker>, f64)> {
    let target = arguments.device_address()?;
    let time_ms = u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?;
    phase("connecting");
    let users = fleet::connect(arguments, &target, time_ms).await.context("setting up users and devices")?;
    phase("signing");
    let prepared = prepared::sign_all(&users, arguments, time_ms)?;

    phase("warming up");
    #[expect(clippy::cast_precision_loss, reason = "at most 256")]
    let frames_per_s = arguments.rate.map(|rate| rate / arguments.events_per_frame as f64);
    let schedule = Arc::new(Schedule::begin(
        Duration::from_secs(arguments.warm_up_s),
        Duration::from_secs(arguments.duration_s),
        Duration::from_secs(arguments.finish_s),
        frames_per_s,
        arguments.connections,
    ));
    let tasks = start_workers(users, prepared, &schedule, arguments)?;
    announce_phases(&schedule).await;
    let workers = tasks.join_all().await;
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a run")]
    let measured_s = schedule.stop_ns().saturating_sub(schedule.measured_from_ns) as f64 / 1e9;
    anyhow::ensure!(measured_s > 0.0, "the signed events were used up in the warm-up: raise --events-max");
    Ok((workers, measured_s))
}

fn start_workers(
    users: Vec<User>,
    prepared: Vec<Vec<Prepared>>,
    schedule: &Arc<Schedule>,
    arguments: &Arguments,
) -> Result<JoinSet<Worker>> {
    let plan = Plan {
        window: arguments.window(),
        events_per_frame: arguments.events_per_frame,
        subscribed: arguments.workload == Workload::Relay,
        observe: arguments.observations.is_some(),
    };
    let mut tasks = JoinSet::new();
    let mut wakers = Vec::with_capacity(arguments.connections);
    for (user, prepared) in users.into_iter().zip(prepared) {
        let ids = user.devices.iter().map(|device| device.id).collect();
        let shared = Arc::new(Shared::new(user.devices[0].user_key, ids, prepared));
        for (device, connection) in user.connections.into_iter().enumerate() {
            let worker = Worker::new(Arc::clone(schedule), Arc::clone(&shared), device, wakers.len(), plan)?;
            wakers.push(Arc::clone(&shared.wakers[device]));
            tasks.spawn(worker.run(connection));
        }
    }
    let pacing = Arc::clone(schedule);
    std::thread::spawn(move || pacing.pace(&wakers));
    Ok(tasks)
}

/// Tells whoever reads the output when the measured phase begins and ends, so that they can read counters then.
async fn announce_phases(schedule: &Schedule) {
    tokio::time::sleep_until(schedule.instant(schedule.measured_from_ns).into()).await;
    phase("measuring");
    tokio::select! {
        () = tokio::time::sleep_until(schedule.instant(schedule.stop_ns()).into()) => {}
        () = schedule.stopped_early.notified() => {}
    }
    phase("measured");
}

fn phase(name: &str) {
    println!("{}", serde_json::json!({ "phase": name }));
}

fn write_observations(mut writer: Writer, workers: &[Worker], arguments: &Arguments) -> Result<()> {
    for worker in workers {
        writer.device(&worker.shared.ids[worker.device], &worker.shared.user_key)?;
    }
    for worker in workers {
        let observer = Observer {
            user_key: &worker.shared.user_key,
            device_id: &worker.shared.ids[worker.device],
            devices: &worker.shared.ids,
            prepared: &worker.shared.prepared,
            index: worker.device,
            subscribed: arguments.workload == Workload::Relay,
        };
        writer.observations(&observer, &worker.observations)?;
    }
    writer.finish()
}
