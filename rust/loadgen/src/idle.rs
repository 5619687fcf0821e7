//! Devices that are connected and silent: what they cost is read from outside while they are held.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keepstep_core::msgpack::write_integer;
use keepstep_loadgen::measured::phase;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::arguments::{Arguments, DeviceUrl};
use crate::connection::Connection;
use crate::fleet::{self, User};
use crate::wire::{FromServer, from_device, write_array};

/// What was just done may still be at work in the server; and whoever reads the phases needs a moment to look.
const SETTLE: Duration = Duration::from_secs(1);
/// A device that sends nothing is closed after two minutes, so it pings (protocol.md section 4).
const PING_INTERVAL: Duration = Duration::from_secs(45);

/// The last line of an idle run.
#[derive(Serialize)]
pub(crate) struct Report {
    version: &'static str,
    workload: &'static str,
    connections: usize,
    devices_per_user: usize,
    subscribed: bool,
    suite: u64,
    /// Seconds that opening all connections took.
    opened_s: f64,
    /// Seconds that they were held.
    measured_s: f64,
    /// Messages that the server sent meanwhile.
    received: u64,
}

/// Phases: `before` with every device known and none connected, `measuring` and `measured` with all of them.
///
/// # Errors
/// A device could not connect, or was disconnected while it was held.
pub(crate) async fn run(arguments: &Arguments, time_ms: u64) -> Result<Report> {
    let target = arguments.device_address()?;
    phase("connecting");
    let users = fleet::enrol(arguments, &target, time_ms).await.context("setting up users and devices")?;
    tokio::time::sleep(SETTLE).await;
    phase("before");
    tokio::time::sleep(SETTLE).await;

    let begin = Instant::now();
    let (stop, stopped) = watch::channel(false);
    let mut held = JoinSet::new();
    for connection in open_all(&users, &target, arguments).await? {
        held.spawn(hold(connection, stopped.clone()));
    }
    let opened_s = begin.elapsed().as_secs_f64();
    tokio::time::sleep(SETTLE).await;
    phase("measuring");
    let duration = Duration::from_secs(arguments.pace.duration_s);
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        Some(ended) = held.join_next() => {
            ended??;
            bail!("a held connection ended");
        }
    }
    phase("measured");
    tokio::time::sleep(SETTLE).await;
    stop.send(true)?;
    let mut received = 0;
    while let Some(result) = held.join_next().await {
        received += result??;
    }
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        workload: arguments.workload.name(),
        connections: arguments.connections,
        devices_per_user: arguments.devices_per_user(),
        subscribed: arguments.subscribed,
        suite: arguments.suite,
        opened_s,
        measured_s: duration.as_secs_f64(),
        received,
    })
}

/// Opens a connection for every device, some at the same time.
async fn open_all(users: &[User], target: &DeviceUrl, arguments: &Arguments) -> Result<Vec<Connection>> {
    let devices: Vec<_> = users.iter().flat_map(|user| &user.devices).collect();
    let mut connections = Vec::with_capacity(devices.len());
    for group in devices.chunks(arguments.at_once) {
        let opening = group.iter().map(|device| async {
            let mut connection = Connection::open(target, device, arguments.suite).await?;
            if arguments.subscribed {
                fleet::subscribe(&mut connection, 1).await?;
            }
            anyhow::Ok(connection)
        });
        connections.extend(futures_util::future::try_join_all(opening).await?);
    }
    Ok(connections)
}

/// Takes what comes and pings, until told to stop; how many messages came.
async fn hold(mut connection: Connection, mut stopped: watch::Receiver<bool>) -> Result<u64> {
    let mut received = 0;
    let mut ping = Vec::new();
    write_array(&mut ping, 2);
    write_integer(&mut ping, from_device::PING);
    write_integer(&mut ping, 0);
    let mut pings = tokio::time::interval_at((Instant::now() + PING_INTERVAL).into(), PING_INTERVAL);
    loop {
        tokio::select! {
            message = connection.receive() => {
                match FromServer::read(&message?)? {
                    FromServer::Error { code } => bail!("error {code}"),
                    FromServer::Draining => bail!("the server drains"),
                    _ => received += 1,
                }
            }
            _ = pings.tick() => connection.send(&ping).await?,
            changed = stopped.changed() => {
                changed?;
                connection.close().await?;
                return Ok(received);
            }
        }
    }
}
