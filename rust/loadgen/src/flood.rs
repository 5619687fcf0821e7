//! A device that means harm: it publishes events with bad signatures as fast as it is answered, while others work.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use keepstep_loadgen::schedule::Schedule;

use crate::arguments::{Arguments, DeviceUrl};
use crate::connection::Connection;
use crate::fleet::{self, User};
use crate::prepared::{Prepared, Shape};
use crate::wire::{Answer, FromServer};

/// Messages that it has, each sent again and again, and how many are in flight.
const FRAMES: usize = 16;
/// Events in each: a message costs the server more than a bad signature in it does.
const EVENTS_PER_FRAME: usize = 1;
/// A server may close such a connection; it comes back.
const RETURN_AFTER: Duration = Duration::from_millis(20);

/// Makes the users that will flood, one device each.
pub(crate) async fn make(arguments: &Arguments, target: &DeviceUrl, time_ms: u64) -> Result<Vec<User>> {
    let alone = Arguments { connections: arguments.bad_signers, devices_per_user: Some(1), ..arguments.clone() };
    fleet::enrol(&alone, target, time_ms).await
}

/// One device's messages, every signature in them wrong.
pub(crate) fn prepare(user: &User, arguments: &Arguments, time_ms: u64) -> Result<Prepared> {
    let device = &user.devices[0];
    let shape = Shape::of_one_stream(FRAMES, EVENTS_PER_FRAME, arguments.payload_bytes);
    let mut prepared = Prepared::sign(device, user.devices_seen, &shape, time_ms)?;
    prepared.spoil_signatures()?;
    Ok(prepared)
}

/// Floods until the run stops; how many events were refused.
///
/// # Errors
/// One was accepted, or the server cannot be reached.
pub(crate) async fn run(
    user: User,
    prepared: Prepared,
    target: DeviceUrl,
    suite: u64,
    schedule: Arc<Schedule>,
) -> Result<u64> {
    let mut refused = 0;
    while schedule.now_ns() < schedule.stop_ns() {
        let mut connection = Connection::open(&target, &user.devices[0], suite).await?;
        // How the connection ends is the server's business, unless it took something.
        let ended = flood(&mut connection, &prepared, &schedule, &mut refused).await;
        ensure!(!ended.is_ok_and(|accepted| accepted), "a bad signature was accepted");
        tokio::time::sleep(RETURN_AFTER).await;
    }
    Ok(refused)
}

/// Whether anything was accepted.
async fn flood(
    connection: &mut Connection,
    prepared: &Prepared,
    schedule: &Schedule,
    refused: &mut u64,
) -> Result<bool> {
    for frame in 0..FRAMES {
        connection.send(prepared.frame(frame)).await?;
    }
    let mut stopped = pin!(schedule.stopped());
    loop {
        let message = tokio::select! {
            message = connection.receive() => message?,
            () = &mut stopped => return Ok(false),
        };
        if let FromServer::Accepted { rid, answers } = FromServer::read(&message)? {
            for answer in answers {
                if !matches!(answer?, Answer::Refused(_)) {
                    return Ok(true);
                }
                *refused += 1;
            }
            connection.send(prepared.frame(usize::try_from(rid)?)).await?;
        }
    }
}
