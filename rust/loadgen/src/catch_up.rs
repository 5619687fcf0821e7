//! One device downloads everything that another one published: transfer, order, chain and signed head checked by it,
//! every signature too where that is asked for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keepstep_core::batch::{Item, verify_many};
use keepstep_core::ed25519::PublicKey;
use keepstep_core::hash::{Hash, chain_0, chain_next, event_hash};
use keepstep_loadgen::measured::phase;
use serde::Serialize;
use tokio::time::timeout;

use crate::arguments::{Arguments, DeviceUrl};
use crate::connection::Connection;
use crate::fleet::{self, User};
use crate::identity::Device;
use crate::prepared::{Prepared, Shape};
use crate::streams::{STREAM, write_acks};
use crate::wire::{Answer, Cursor, FromServer};
use crate::workload::{ACK_SHARE, UNACKED_BYTES_DEFAULT};

const EVENTS_PER_FRAME: usize = 100;
const WINDOW: usize = 16;
/// The rest of the server's work for what was published: it is not measured.
const SETTLE: Duration = Duration::from_secs(1);
const SIGNED_EVENT: &[u8] = b"keepstep/v1/event\0";
const SIGNED_HEAD: &[u8] = b"keepstep/v1/head\0";

/// The last line of a catching-up run.
#[derive(Serialize)]
pub(crate) struct Report {
    version: &'static str,
    workload: &'static str,
    /// Events that were stored, and downloaded each time.
    events: u64,
    downloads: u32,
    verified: bool,
    payload_bytes: usize,
    suite: u64,
    /// Seconds from the subscriptions until the signed heads were there and checked, connecting not counted.
    measured_s: f64,
    /// The same of each download.
    download_s: Vec<f64>,
    bytes: u64,
    /// Events downloaded in all.
    downloaded: u64,
    downloaded_per_s: f64,
}

/// What a device knows when it begins.
struct Reader<'a> {
    user_key: [u8; 32],
    author: &'a Device,
    author_key: PublicKey,
    server_key: PublicKey,
    verify: bool,
    position: u64,
    chain: Hash,
    bytes: u64,
}

/// Publishes, then downloads again and again, each time with a new session of the second device.
///
/// # Errors
/// Anything that came was not what had been published, in its order, or a chain, head or signature did not hold.
pub(crate) async fn run(arguments: &Arguments, time_ms: u64) -> Result<Report> {
    let target = arguments.device_address()?;
    phase("connecting");
    let users = fleet::enrol(arguments, &target, time_ms).await.context("setting up users and devices")?;
    let [user] = &users[..] else { bail!("one user with two devices catches up") };
    phase("storing");
    store(user, &target, arguments, time_ms).await.context("storing the events")?;
    tokio::time::sleep(SETTLE).await;

    let mut download_s = Vec::new();
    let mut bytes = 0;
    phase("measuring");
    for _ in 0..arguments.downloads {
        let mut connection = Connection::open(&target, &user.devices[1], arguments.suite).await?;
        let mut reader = Reader::new(user, &target, arguments.verify)?;
        let begin = Instant::now();
        fleet::subscribe(&mut connection, 1).await?;
        let everything = reader.download(&mut connection, arguments.events);
        timeout(Duration::from_secs(arguments.pace.finish_s), everything)
            .await
            .context("downloading took too long")??;
        download_s.push(begin.elapsed().as_secs_f64());
        bytes += reader.bytes;
        connection.leave().await?;
    }
    phase("measured");
    let measured_s: f64 = download_s.iter().sum();
    let downloaded = arguments.events * u64::from(arguments.downloads);
    #[expect(clippy::cast_precision_loss, reason = "event counts of a run")]
    let downloaded_per_s = downloaded as f64 / measured_s;
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        workload: arguments.workload.name(),
        events: arguments.events,
        downloads: arguments.downloads,
        verified: arguments.verify,
        payload_bytes: arguments.payload_bytes,
        suite: arguments.suite,
        measured_s,
        download_s,
        bytes,
        downloaded,
        downloaded_per_s,
    })
}

/// The first device publishes all events, some messages in flight.
async fn store(user: &User, target: &DeviceUrl, arguments: &Arguments, time_ms: u64) -> Result<()> {
    let frames = usize::try_from(arguments.events)?.div_ceil(EVENTS_PER_FRAME);
    ensure!(
        frames * EVENTS_PER_FRAME == usize::try_from(arguments.events)?,
        "--events is a multiple of {EVENTS_PER_FRAME}"
    );
    let author = &user.devices[0];
    let shape = Shape::of_one_stream(frames, EVENTS_PER_FRAME, arguments.payload_bytes);
    let prepared = Prepared::sign(author, user.devices_seen, &shape, time_ms)?;
    let mut connection = Connection::open(target, author, arguments.suite).await?;
    let mut sent = 0;
    let mut answered = 0;
    while answered < frames {
        while sent < frames && sent - answered < WINDOW {
            connection.send(prepared.frame(sent)).await?;
            sent += 1;
        }
        match FromServer::read(&connection.receive().await?)? {
            FromServer::Accepted { mut answers, .. } => {
                ensure!(answers.all(|answer| matches!(answer, Ok(Answer::Accepted { .. }))), "an event was not stored");
                answered += 1;
            }
            FromServer::Error { code } => bail!("error {code}"),
            _ => {}
        }
    }
    connection.leave().await
}

impl<'a> Reader<'a> {
    fn new(user: &'a User, target: &DeviceUrl, verify: bool) -> Result<Self> {
        let author = &user.devices[0];
        Ok(Self {
            user_key: author.user_key,
            author,
            author_key: PublicKey::from_bytes(&author.public())?,
            server_key: PublicKey::from_bytes(&target.server_key)?,
            verify,
            position: 0,
            chain: chain_0(&author.user_key, STREAM),
            bytes: 0,
        })
    }

    /// Takes pages until the signed head of the last event has come.
    async fn download(&mut self, connection: &mut Connection, events: u64) -> Result<()> {
        let ack_at_bytes = connection.limits.get("unacked_bytes", UNACKED_BYTES_DEFAULT) / ACK_SHARE;
        let mut unacked_bytes = 0;
        loop {
            let message = connection.receive().await?;
            match FromServer::read(&message)? {
                FromServer::Events { stream: STREAM, count, rows } => {
                    self.page(count, rows)?;
                    self.bytes += message.len() as u64;
                    unacked_bytes += message.len() as u64;
                    if unacked_bytes >= ack_at_bytes {
                        unacked_bytes = 0;
                        for ack in write_acks(&[0], |_| (self.position, self.chain))? {
                            connection.send(&ack).await?;
                        }
                    }
                }
                FromServer::CaughtUp { stream: STREAM, head, signature } => {
                    self.check_head(head, &signature)?;
                    if self.position == events {
                        return Ok(());
                    }
                }
                FromServer::Error { code } => bail!("error {code}"),
                FromServer::Draining => bail!("the server drains"),
                _ => {}
            }
        }
    }

    /// Rows continue the position, hash to the page's chain, and are signed by their author.
    fn page(&mut self, count: u64, rows: &[u8]) -> Result<()> {
        let mut cursor = Cursor::new(rows);
        let mut signed = Vec::new();
        for _ in 0..count {
            ensure!(cursor.array()? == 7, "a row has 7 fields");
            let seq = cursor.integer()?;
            ensure!(seq == self.position + 1, "a gap: position {}, delivered {seq}", self.position);
            ensure!(cursor.binary_of::<16>()? == self.author.id, "an event of another device");
            let received_at_ms = cursor.integer()?;
            let header = cursor.binary()?;
            let signature = cursor.binary()?;
            cursor.value()?;
            cursor.value()?;
            self.chain = chain_next(&self.chain, seq, received_at_ms, &event_hash(header, signature));
            self.position = seq;
            if self.verify {
                signed.push((header, signature));
            }
        }
        ensure!(cursor.binary_of::<32>()? == self.chain, "a page's chain is not that of its events");
        let items: Vec<_> = signed
            .iter()
            .map(|(header, signature)| Item {
                key: &self.author_key,
                message: [SIGNED_EVENT, &self.user_key, &self.author.id, header],
                signature,
            })
            .collect();
        ensure!(verify_many(&items).into_iter().all(|good| good), "a signature is not its author's");
        Ok(())
    }

    /// The server signs exactly what was downloaded: `[1, user_key, stream, epoch, seq, chain, time_ms]`.
    fn check_head(&self, head: &[u8], signature: &[u8; 64]) -> Result<()> {
        self.server_key.verify(&[SIGNED_HEAD, head], signature)?;
        let mut cursor = Cursor::new(head);
        ensure!(cursor.array()? == 7 && cursor.integer()? == 1, "a signed head has 7 fields");
        ensure!(cursor.binary_of::<32>()? == self.user_key && cursor.text()? == STREAM, "a head of another stream");
        cursor.integer()?;
        let place = (cursor.integer()?, cursor.binary_of::<32>()?);
        ensure!(place == (self.position, self.chain), "the signed head is not what was downloaded");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use keepstep_core::ed25519;
    use keepstep_core::msgpack::{write_binary, write_integer};

    use super::*;
    use crate::identity::Seen;
    use crate::wire::{write_array, write_text};

    const SERVER_SECRET: [u8; 32] = [1; 32];
    const RECEIVED_AT_MS: u64 = 1_760_000_000_000;

    /// A user whose first device published four events, and these as a page.
    fn page() -> Result<(User, Vec<u8>, Hash)> {
        let seen = Seen { seq: 1, chain: [1; 32] };
        let devices = vec![Device::new([5; 32])?, Device::new([5; 32])?];
        let prepared = Prepared::sign(&devices[0], seen, &Shape::of_one_stream(1, 4, 16), RECEIVED_AT_MS)?;
        let mut rows = Vec::new();
        let mut chain = chain_0(&[5; 32], STREAM);
        for n in 1..=4 {
            write_array(&mut rows, 7);
            write_integer(&mut rows, n);
            write_binary(&mut rows, &devices[0].id)?;
            write_integer(&mut rows, RECEIVED_AT_MS);
            rows.extend_from_slice(prepared.tail(0, usize::try_from(n)?));
            chain = chain_next(&chain, n, RECEIVED_AT_MS, prepared.hash(0, usize::try_from(n)?));
        }
        write_binary(&mut rows, &chain)?;
        Ok((User { devices, connections: Vec::new(), devices_seen: seen }, rows, chain))
    }

    fn target() -> Result<DeviceUrl> {
        let server_key = ed25519::public(&SERVER_SECRET);
        Ok(DeviceUrl { url: String::new(), address: "127.0.0.1:1".parse()?, server_key })
    }

    fn head(seq: u64, chain: &Hash) -> Result<(Vec<u8>, [u8; 64])> {
        let mut head = Vec::new();
        write_array(&mut head, 7);
        write_integer(&mut head, 1);
        write_binary(&mut head, &[5; 32])?;
        write_text(&mut head, STREAM)?;
        write_integer(&mut head, 0);
        write_integer(&mut head, seq);
        write_binary(&mut head, chain)?;
        write_integer(&mut head, RECEIVED_AT_MS);
        let signature = ed25519::sign(&SERVER_SECRET, &[SIGNED_HEAD, &head].concat());
        Ok((head, signature))
    }

    #[test]
    fn a_page_and_its_signed_head_are_accepted() -> Result<()> {
        let (user, rows, chain) = page()?;
        let mut reader = Reader::new(&user, &target()?, true)?;
        reader.page(4, &rows)?;
        assert_eq!((reader.position, reader.chain), (4, chain));
        let (head, signature) = head(4, &chain)?;
        reader.check_head(&head, &signature)?;
        Ok(())
    }

    #[test]
    fn a_byte_that_was_changed_anywhere_is_found() -> Result<()> {
        let (user, rows, _) = page()?;
        for position in 0..rows.len() {
            let mut changed = rows.clone();
            changed[position] ^= 1;
            let mut reader = Reader::new(&user, &target()?, true)?;
            // The payload's hash stands in the header; only who opens payloads compares it.
            let in_payload = reader.page(4, &changed).is_ok();
            assert!(!in_payload || is_payload_or_trace(&rows, position)?, "byte {position}");
        }
        Ok(())
    }

    /// Whether a byte belongs to what follows a signature in some row.
    fn is_payload_or_trace(rows: &[u8], position: usize) -> Result<bool> {
        let mut cursor = Cursor::new(rows);
        for _ in 0..4 {
            cursor.array()?;
            cursor.integer()?;
            cursor.binary()?;
            cursor.integer()?;
            cursor.binary()?;
            cursor.binary()?;
            let begin = rows.len() - cursor.rest().len();
            cursor.value()?;
            cursor.value()?;
            if (begin..rows.len() - cursor.rest().len()).contains(&position) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    #[test]
    fn a_head_of_anything_else_is_refused() -> Result<()> {
        let (user, rows, chain) = page()?;
        let mut reader = Reader::new(&user, &target()?, false)?;
        reader.page(4, &rows)?;
        let (mut other, signature) = head(4, &chain)?;
        other[3] ^= 1;
        assert!(reader.check_head(&other, &signature).is_err());
        let (head, signature) = head(3, &chain)?;
        assert!(reader.check_head(&head, &signature).is_err());
        Ok(())
    }
}
