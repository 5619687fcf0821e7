//! Makes the users and devices of a run: accounts by REST, further devices by `$devices` events, then all connections.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use keepstep_core::hash::chain_0;
use keepstep_core::header::DEVICES_STREAM;
use keepstep_core::msgpack::{write_binary, write_integer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::arguments::{Arguments, DeviceUrl};
use crate::connection::Connection;
use crate::identity::{Device, Draft, Root, Seen, Signed, capability};
use crate::streams::write_subscriptions;
use crate::wire::{Answer, Cursor, FromServer, from_device, write_array};

const CREATE_ACCOUNT_PATH: &str = "/api/v1/accounts";
const RESPONSE_BYTES_MAX: u64 = 64 * 1024;
const TOO_MANY_REQUESTS: u16 = 429;

/// A user with its devices.
pub(crate) struct User {
    pub(crate) devices: Vec<Device>,
    /// Of the devices in their order; empty where they were only enrolled.
    pub(crate) connections: Vec<Connection>,
    /// Head of `$devices` once all devices are enrolled.
    pub(crate) devices_seen: Seen,
}

/// Makes all users and connects their devices.
pub(crate) async fn connect(arguments: &Arguments, target: &DeviceUrl, time_ms: u64) -> Result<Vec<User>> {
    make_users(arguments, target, time_ms, true).await
}

/// Makes all users with their devices, none of which stays connected.
pub(crate) async fn enrol(arguments: &Arguments, target: &DeviceUrl, time_ms: u64) -> Result<Vec<User>> {
    make_users(arguments, target, time_ms, false).await
}

async fn make_users(arguments: &Arguments, target: &DeviceUrl, time_ms: u64, connected: bool) -> Result<Vec<User>> {
    let permits = Arc::new(Semaphore::new(arguments.at_once));
    let mut tasks = JoinSet::new();
    for _ in 0..arguments.connections / arguments.devices_per_user() {
        let (arguments, target, permits) = (arguments.clone(), target.clone(), Arc::clone(&permits));
        tasks.spawn(async move {
            let _permit = permits.acquire_owned().await?;
            let mut user = make_user(&arguments, &target, time_ms).await?;
            if connected {
                connect_devices(&mut user, &arguments, &target).await?;
            } else {
                for connection in user.connections.drain(..) {
                    connection.close().await?;
                }
            }
            anyhow::Ok(user)
        });
    }
    let mut users = Vec::new();
    while let Some(user) = tasks.join_next().await {
        users.push(user??);
    }
    Ok(users)
}

/// Registers a user and enrols its other devices, over the first one's connection where there are any.
async fn make_user(arguments: &Arguments, target: &DeviceUrl, time_ms: u64) -> Result<User> {
    let root = Root::new()?;
    let user_key = root.user_key();
    let devices = (0..arguments.devices_per_user()).map(|_| Device::new(user_key)).collect::<Result<Vec<_>>>()?;
    let first = &devices[0];

    let nothing = Seen { seq: 0, chain: chain_0(&user_key, DEVICES_STREAM) };
    let payload = root.genesis(first, capability::PUBLISH | capability::SUBSCRIBE | capability::MANAGE, time_ms)?;
    let genesis = account_event(first, 1, &[0; 32], nothing, time_ms, &payload)?;
    let mut devices_seen = create_account(arguments, &genesis, payload).await?;
    if devices.len() == 1 {
        return Ok(User { devices, connections: Vec::new(), devices_seen });
    }
    let mut connection = Connection::open(target, first, arguments.suite).await?;
    let mut previous = genesis.hash;
    for (n, device) in (2..).zip(&devices[1..]) {
        let payload = device.enrolment(capability::PUBLISH | capability::SUBSCRIBE, time_ms)?;
        let event = account_event(first, n, &previous, devices_seen, time_ms, &payload)?;
        devices_seen = publish_enrolment(&mut connection, n, &event, &payload).await?;
        previous = event.hash;
    }
    Ok(User { devices, connections: vec![connection], devices_seen })
}

/// Connects those devices that are not connected yet.
async fn connect_devices(user: &mut User, arguments: &Arguments, target: &DeviceUrl) -> Result<()> {
    for device in &user.devices[user.connections.len()..] {
        user.connections.push(Connection::open(target, device, arguments.suite).await?);
    }
    if arguments.subscribes() {
        for connection in &mut user.connections {
            subscribe(connection, arguments.streams_per_user).await?;
        }
    }
    Ok(())
}

fn account_event(
    author: &Device,
    n: u64,
    previous: &[u8; 32],
    seen: Seen,
    time_ms: u64,
    payload: &[u8],
) -> Result<Signed> {
    author.event(&Draft { stream: DEVICES_STREAM, n, previous, seen, devices_seen: seen, time_ms, payload })
}

/// Posts `[header, sig, payload]`; the answer is `[seq, received_at_ms, chain, signed head]`.
async fn create_account(arguments: &Arguments, genesis: &Signed, payload: Vec<u8>) -> Result<Seen> {
    let mut body = Vec::new();
    write_array(&mut body, 3);
    write_binary(&mut body, &genesis.header)?;
    write_binary(&mut body, &genesis.signature)?;
    write_binary(&mut body, &payload)?;
    let url = format!("{}{CREATE_ACCOUNT_PATH}", arguments.rest.trim_end_matches('/'));
    let answer = tokio::task::spawn_blocking(move || post(&url, &body)).await??;
    let mut cursor = Cursor::new(&answer);
    ensure!(cursor.array()? >= 3, "the answer to the genesis is not the documented form");
    let seq = cursor.integer()?;
    cursor.integer()?;
    Ok(Seen { seq, chain: cursor.binary_of()? })
}

fn post(url: &str, body: &[u8]) -> Result<Vec<u8>> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let agent = ureq::Agent::new_with_config(config);
    let mut response = agent.post(url).header("Content-Type", "application/msgpack").send(body)?;
    let status = response.status();
    let answer = response.body_mut().with_config().limit(RESPONSE_BYTES_MAX).read_to_vec()?;
    ensure!(status.is_success(), "{}", refusal(status.as_u16(), &String::from_utf8_lossy(&answer)));
    Ok(answer)
}

/// What is said of an account that the server did not take.
fn refusal(status: u16, answer: &str) -> String {
    let hint = if status == TOO_MANY_REQUESTS {
        "; a server takes as many accounts as KEEPSTEP_REGISTRATIONS_PER_ADDRESS_HOUR, \
         KEEPSTEP_REGISTRATIONS_PER_HOUR and KEEPSTEP_REST_CALLS_PER_ADDRESS_MINUTE let it"
    } else {
        ""
    };
    format!("the genesis was answered {status}: {answer}{hint}")
}

async fn publish_enrolment(connection: &mut Connection, rid: u64, event: &Signed, payload: &[u8]) -> Result<Seen> {
    let mut message = Vec::new();
    write_publish(&mut message, rid, 1)?;
    write_event(&mut message, event, payload)?;
    connection.send(&message).await?;
    loop {
        match FromServer::read(&connection.receive().await?)? {
            FromServer::Accepted { rid: answered, answers } if answered == rid => {
                let answers: Vec<_> = answers.collect::<Result<_>>()?;
                let [Answer::Accepted { seq, chain, .. }] = answers[..] else {
                    bail!("the enrolment was answered {answers:?}");
                };
                return Ok(Seen { seq, chain });
            }
            FromServer::Error { code } => bail!("the enrolment was answered {code}"),
            _ => {}
        }
    }
}

/// Follows the user's first `count` streams from their start.
pub(crate) async fn subscribe(connection: &mut Connection, count: usize) -> Result<()> {
    for message in write_subscriptions(count)? {
        connection.send(&message).await?;
    }
    let mut answered = 0;
    while answered < count {
        match FromServer::read(&connection.receive().await?)? {
            FromServer::Resumed { answer: "contiguous", .. } => answered += 1,
            FromServer::Resumed { stream, answer } => bail!("the subscription to {stream} was answered {answer}"),
            FromServer::Error { code } => bail!("the subscription was answered {code}"),
            FromServer::Events { .. } => bail!("events before all subscriptions were answered"),
            _ => {}
        }
    }
    Ok(())
}

/// Begins `[16, rid, [event…]]` for `count` events.
pub(crate) fn write_publish(output: &mut Vec<u8>, rid: u64, count: usize) -> Result<()> {
    write_array(output, 3);
    write_integer(output, from_device::PUBLISH);
    write_integer(output, rid);
    write_array(output, u16::try_from(count).context("too many events in one message")?);
    Ok(())
}

/// Appends `[header, sig, payload, nil]`.
pub(crate) fn write_event(output: &mut Vec<u8>, event: &Signed, payload: &[u8]) -> Result<()> {
    write_array(output, 4);
    write_binary(output, &event.header)?;
    write_binary(output, &event.signature)?;
    write_binary(output, payload)?;
    output.push(0xc0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_takes_no_more_accounts_is_said_to_have_settings_for_that() {
        assert!(refusal(429, "{}").contains("KEEPSTEP_REGISTRATIONS_PER_ADDRESS_HOUR"));
        assert_eq!(refusal(503, "{}"), "the genesis was answered 503: {}");
    }
}
