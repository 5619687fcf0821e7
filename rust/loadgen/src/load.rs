//! The loads of events: devices that publish, and follow what others publish.

use std::sync::Arc;

use anyhow::{Context, Result};
use keepstep_loadgen::measured::{EventLatencies, Measured, phase};
use keepstep_loadgen::schedule::Schedule;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::arguments::Arguments;
use crate::fleet::{self, User};
use crate::flood;
use crate::observations::{Observer, Writer};
use crate::prepared::{self, Prepared};
use crate::report::Report;
use crate::workload::{Plan, Shared, Worker};

/// Connects, signs, runs the load, and writes what was observed.
pub(crate) fn run(runtime: &Runtime, arguments: &Arguments, time_ms: u64) -> Result<Report> {
    let writer = arguments.observations.as_deref().map(Writer::create).transpose()?;
    let latencies = Arc::new(EventLatencies::new()?);
    let (workers, bad_refused, schedule) = runtime.block_on(measure(arguments, &latencies, time_ms))?;
    let mut measured = Measured::default();
    for worker in &workers {
        measured.add(&worker.measured);
    }
    if let Some(writer) = writer {
        write_observations(writer, &workers, arguments)?;
    }
    let totals = measured.totals(&latencies, schedule.measured_s(), schedule.warm_up());
    Ok(Report::new(arguments, totals, bad_refused))
}

/// Connects, signs, and runs the load; returns the workers, the bad signatures refused, and when what was.
async fn measure(
    arguments: &Arguments,
    latencies: &Arc<EventLatencies>,
    time_ms: u64,
) -> Result<(Vec<Worker>, u64, Arc<Schedule>)> {
    let target = arguments.device_address()?;
    phase("connecting");
    let users = fleet::connect(arguments, &target, time_ms).await.context("setting up users and devices")?;
    let bad_signers = flood::make(arguments, &target, time_ms).await.context("setting up those who flood")?;
    phase("signing");
    let prepared = prepared::sign_all(&users, arguments, time_ms)?;
    let spoilt = bad_signers.iter().map(|user| flood::prepare(user, arguments, time_ms)).collect::<Result<Vec<_>>>()?;

    phase("warming up");
    let pace = &arguments.pace;
    let first_messages = prepared.iter().flatten().map(|one| pace.first_frames(one.beginnings())).sum();
    let schedule = Arc::new(pace.begin(arguments.connections, arguments.events_per_frame, first_messages));
    let mut floods = JoinSet::new();
    for (user, spoilt) in bad_signers.into_iter().zip(spoilt) {
        floods.spawn(flood::run(user, spoilt, target.clone(), arguments.suite, Arc::clone(&schedule)));
    }
    let tasks = start_workers(users, prepared, &schedule, latencies, arguments);
    announce_phases(&schedule).await;
    let workers = tasks.join_all().await;
    let bad_refused = floods.join_all().await.into_iter().sum::<Result<u64>>()?;
    anyhow::ensure!(schedule.begun(), "not all first messages were answered: raise --finish-s");
    anyhow::ensure!(schedule.measured_s() > 0.0, "the signed events were used up in the warm-up: raise --events-max");
    Ok((workers, bad_refused, schedule))
}

fn start_workers(
    users: Vec<User>,
    prepared: Vec<Vec<Prepared>>,
    schedule: &Arc<Schedule>,
    latencies: &Arc<EventLatencies>,
    arguments: &Arguments,
) -> JoinSet<Worker> {
    let plan = Plan {
        window: arguments.window(),
        events_per_frame: arguments.events_per_frame,
        subscribed: arguments.subscribes(),
        observe: arguments.observations.is_some(),
        first_frames: arguments.pace.first_frames(0),
    };
    let mut tasks = JoinSet::new();
    let mut wakers = Vec::with_capacity(arguments.connections);
    for (user, prepared) in users.into_iter().zip(prepared) {
        let ids = user.devices.iter().map(|device| device.id).collect();
        let shared = Arc::new(Shared::new(user.devices[0].user_key, ids, prepared, arguments.streams_per_user));
        for (device, connection) in user.connections.into_iter().enumerate() {
            let (schedule, latencies) = (Arc::clone(schedule), Arc::clone(latencies));
            let worker = Worker::new(schedule, Arc::clone(&shared), device, wakers.len(), plan, latencies);
            wakers.push(Arc::clone(&shared.wakers[device]));
            tasks.spawn(worker.run(connection));
        }
    }
    let pacing = Arc::clone(schedule);
    std::thread::spawn(move || pacing.pace(&wakers));
    tasks
}

/// Tells whoever reads the output when the measured phase begins and ends, so that they can read counters then.
async fn announce_phases(schedule: &Schedule) {
    schedule.measuring().await;
    phase("measuring");
    schedule.stopped().await;
    phase("measured");
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
            streams: arguments.streams_per_user,
        };
        writer.observations(&observer, &worker.observations)?;
    }
    writer.finish()
}
