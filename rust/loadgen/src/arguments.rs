//! What the command line says, and the bounds it must keep.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use keepstep_loadgen::pace::Pace;

/// Most events signed beforehand: about 700 bytes each are held in memory.
const EVENTS_MAX: u64 = 10_000_000;
const CONNECTIONS_MAX: usize = 50_000;
/// Most events of one publish message (protocol.md section 4).
const EVENTS_PER_FRAME_MAX: usize = 256;
/// Most bytes of events in one publish message (protocol.md section 4), less what signature and header take.
const FRAME_PAYLOAD_BYTES_MAX: usize = 900 * 1024;

/// Most devices of a user that a server takes unless it is configured otherwise.
const DEVICES_PER_USER_MAX: usize = 64;
const AT_ONCE_MAX: usize = 256;
/// A server lets a user have 10,000 unless it is configured otherwise, those of the account itself among them.
const STREAMS_PER_USER_MAX: usize = 9_990;
const MESSAGES_PER_STREAM_MAX: usize = 1_000_000;
const DOWNLOADS_MAX: u32 = 1_000;
const BAD_SIGNERS_MAX: usize = 1_000;
const WINDOW_MAX: usize = 1024;
const WINDOW_CLOSED_LOOP: usize = 4;

/// What the devices do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// One device a user, which publishes; nobody subscribes.
    Publish,
    /// Three devices a user, which all publish into one stream and all subscribe to it.
    Relay,
    /// Devices that are connected, authenticated and silent: what a connection costs while nothing happens.
    Idle,
    /// Devices that connect, authenticate and leave again, all the time.
    Connect,
    /// One device that downloads what another one of its user published before.
    CatchUp,
}

impl Workload {
    /// Devices of each user, where the command line does not say.
    fn devices_per_user(self) -> usize {
        match self {
            Self::Publish | Self::Connect => 1,
            Self::CatchUp => 2,
            Self::Relay | Self::Idle => 3,
        }
    }

    /// Its name in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Relay => "relay",
            Self::Idle => "idle",
            Self::Connect => "connect",
            Self::CatchUp => "catch-up",
        }
    }
}

/// Authenticated devices that load a keepstep server, and what it took to acknowledge, deliver and connect.
///
/// Prints one JSON object a line: {"phase": …} when a phase begins, and the results as the last line.
#[derive(Clone, Debug, Parser)]
#[command(name = "keepstep-loadgen", version)]
pub(crate) struct Arguments {
    /// What the devices do
    #[arg(value_enum)]
    pub(crate) workload: Workload,
    /// REST address, where accounts are made: <http://127.0.0.1:8440>
    #[arg(long)]
    pub(crate) rest: String,
    /// Device address with the server's key: <ws://127.0.0.1:8441/v1/connect#KEY>
    #[arg(long)]
    pub(crate) device_url: String,
    /// Connections, one a device; a multiple of the devices a user has
    #[arg(long, default_value_t = 99)]
    pub(crate) connections: usize,
    /// Devices of each user: 1 for publish and connect, 3 for relay and idle unless given
    #[arg(long)]
    pub(crate) devices_per_user: Option<usize>,
    /// Connections that are being opened at the same time; a server bounds those that are not authenticated yet
    #[arg(long, default_value_t = 16)]
    pub(crate) at_once: usize,
    /// Relay and publish: further users with one device each that floods the server with bad signatures
    #[arg(long, default_value_t = 0)]
    pub(crate) bad_signers: usize,
    /// Catch-up: events that are stored and downloaded, a multiple of 100
    #[arg(long, default_value_t = 100_000)]
    pub(crate) events: u64,
    /// Catch-up: how often they are downloaded, each time by a new session
    #[arg(long, default_value_t = 5)]
    pub(crate) downloads: u32,
    /// Catch-up: every event's signature is verified, not only the chain and the signed head
    #[arg(long)]
    pub(crate) verify: bool,
    /// Relay and publish: streams of each user, that the messages of a device go into in turns; all begin before the warm-up
    #[arg(long, default_value_t = 1)]
    pub(crate) streams_per_user: usize,
    /// Relay and publish: messages of a device into one stream before it is the next one's turn
    #[arg(long, default_value_t = 1)]
    pub(crate) messages_per_stream: usize,
    /// Idle: every device follows its user's stream
    #[arg(long)]
    pub(crate) subscribed: bool,
    /// Events in one publish message, 1 to 256
    #[arg(long, default_value_t = 10)]
    pub(crate) events_per_frame: usize,
    /// Bytes of an event's payload
    #[arg(long, default_value_t = 256)]
    pub(crate) payload_bytes: usize,
    /// Publish messages in flight on a connection: 4 in a closed loop, in an open one as many as the server allows
    #[arg(long)]
    pub(crate) window: Option<usize>,
    #[command(flatten)]
    pub(crate) pace: Pace,
    /// Closed loop: events signed beforehand for all connections; the run ends when they are used up
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) events_max: u64,
    /// AEAD suite of the records: 1 AES-256-GCM, 2 ChaCha20-Poly1305
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=2))]
    pub(crate) suite: u64,
    /// Write what was observed for `python -m bench.checker`; the file must not exist
    #[arg(long)]
    pub(crate) observations: Option<PathBuf>,
}

/// The parts of `ws://host:port/path#key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceUrl {
    /// Without the key.
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    /// The server's identity key, which devices pin.
    pub(crate) server_key: [u8; 32],
}

impl Arguments {
    /// Checks everything that can be checked before anything is opened.
    pub(crate) fn check(&self) -> Result<()> {
        let devices = self.devices_per_user();
        ensure!(
            self.workload != Workload::CatchUp || (devices, self.connections) == (2, 2),
            "catch-up has --connections 2, of one user"
        );
        ensure!((1..=DEVICES_PER_USER_MAX).contains(&devices), "--devices-per-user is 1 to {DEVICES_PER_USER_MAX}");
        ensure!((1..=AT_ONCE_MAX).contains(&self.at_once), "--at-once is 1 to {AT_ONCE_MAX}");
        ensure!((1..=CONNECTIONS_MAX).contains(&self.connections), "--connections is 1 to {CONNECTIONS_MAX}");
        ensure!(self.connections.is_multiple_of(devices), "--connections is a multiple of {devices} for this workload");
        ensure!(
            (1..=EVENTS_PER_FRAME_MAX).contains(&self.events_per_frame),
            "--events-per-frame is 1 to {EVENTS_PER_FRAME_MAX}"
        );
        ensure!(
            self.payload_bytes * self.events_per_frame <= FRAME_PAYLOAD_BYTES_MAX,
            "--payload-bytes times --events-per-frame is at most {FRAME_PAYLOAD_BYTES_MAX}"
        );
        ensure!((1..=WINDOW_MAX).contains(&self.window()), "--window is 1 to {WINDOW_MAX}");
        self.pace.check()?;
        let events = self.events_to_sign();
        ensure!((1..=EVENTS_MAX).contains(&events), "that is {events} events to sign; at most {EVENTS_MAX}");
        ensure!((1..=EVENTS_MAX).contains(&self.events), "--events is 1 to {EVENTS_MAX}");
        ensure!((1..=DOWNLOADS_MAX).contains(&self.downloads), "--downloads is 1 to {DOWNLOADS_MAX}");
        ensure!(
            (1..=STREAMS_PER_USER_MAX).contains(&self.streams_per_user),
            "--streams-per-user is 1 to {STREAMS_PER_USER_MAX}"
        );
        ensure!(
            (1..=MESSAGES_PER_STREAM_MAX).contains(&self.messages_per_stream),
            "--messages-per-stream is 1 to {MESSAGES_PER_STREAM_MAX}"
        );
        ensure!(self.bad_signers <= BAD_SIGNERS_MAX, "--bad-signers is at most {BAD_SIGNERS_MAX}");
        ensure!(self.observations.is_none() || self.publishes(), "--observations is for workloads that publish");
        self.check_rest()
    }

    /// Devices of each user.
    pub(crate) fn devices_per_user(&self) -> usize {
        self.devices_per_user.unwrap_or_else(|| self.workload.devices_per_user())
    }

    /// Whether the load is of events.
    fn publishes(&self) -> bool {
        matches!(self.workload, Workload::Publish | Workload::Relay)
    }

    /// Whether the devices follow their user's stream.
    pub(crate) fn subscribes(&self) -> bool {
        self.workload == Workload::Relay || self.subscribed
    }

    /// Publish messages in flight on a connection, where the server allows as many.
    pub(crate) fn window(&self) -> usize {
        let usual = if self.pace.rate.is_some() { WINDOW_MAX } else { WINDOW_CLOSED_LOOP };
        self.window.unwrap_or(usual)
    }

    /// Events to sign for all connections together.
    pub(crate) fn events_to_sign(&self) -> u64 {
        self.pace.events(self.events_max)
    }

    /// Publish messages to prepare for each connection, beside its first ones.
    pub(crate) fn frames_per_connection(&self) -> usize {
        self.pace.frames(self.connections, self.events_per_frame, self.events_max)
    }

    fn check_rest(&self) -> Result<()> {
        let host = self.rest.strip_prefix("http://").context("--rest begins with http://")?;
        let host = host.trim_end_matches('/');
        self.pace.resolve(host).with_context(|| format!("--rest {}", self.rest))?;
        Ok(())
    }

    /// The device address, resolved.
    pub(crate) fn device_address(&self) -> Result<DeviceUrl> {
        let (url, key) = self.device_url.split_once('#').context("--device-url ends with # and the server's key")?;
        let host = url.strip_prefix("ws://").context("--device-url begins with ws://")?;
        let host = host.split_once('/').map_or(host, |(host, _)| host);
        let address = self.pace.resolve(host).with_context(|| format!("--device-url {url}"))?;
        let server_key = from_hex(key).context("the server's key in --device-url is 64 hex digits")?;
        Ok(DeviceUrl { url: url.to_owned(), address, server_key })
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn arguments(more: &[&str]) -> Arguments {
        let url = format!("ws://127.0.0.1:8441/v1/connect#{KEY}");
        let base = ["keepstep-loadgen", "relay", "--rest", "http://127.0.0.1:8440", "--device-url", url.as_str()];
        Arguments::parse_from(base.iter().chain(more))
    }

    fn refusal(more: &[&str]) -> String {
        let arguments = arguments(more);
        match arguments.check().and_then(|()| arguments.device_address()) {
            Ok(_) => String::new(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn the_defaults_are_the_smoke_benchmark() {
        assert_eq!(refusal(&[]), "");
        let arguments = arguments(&[]);
        assert_eq!((arguments.connections, arguments.events_per_frame, arguments.payload_bytes), (99, 10, 256));
        assert_eq!((arguments.frames_per_connection(), arguments.window()), (1011, WINDOW_CLOSED_LOOP));
    }

    #[test]
    fn an_open_loop_signs_what_its_rate_needs() {
        let arguments = arguments(&["--rate", "1000", "--duration-s", "10", "--warm-up-s", "1", "--connections", "3"]);
        assert_eq!(arguments.events_to_sign(), 16_000);
        assert_eq!((arguments.frames_per_connection(), arguments.window()), (534, WINDOW_MAX));
    }

    #[test]
    fn numbers_out_of_their_bounds_are_refused_by_name() {
        for (argument, value) in [
            ("--connections", "0"),
            ("--connections", "100"),
            ("--events-per-frame", "257"),
            ("--payload-bytes", "100000"),
            ("--window", "0"),
            ("--duration-s", "0"),
            ("--threads", "0"),
            ("--rate", "0"),
            ("--devices-per-user", "65"),
            ("--at-once", "0"),
            ("--events", "0"),
            ("--downloads", "0"),
            ("--bad-signers", "1001"),
            ("--streams-per-user", "9991"),
            ("--messages-per-stream", "0"),
        ] {
            assert!(refusal(&[argument, value]).contains(argument), "{argument} {value}");
        }
        assert!(refusal(&["--events-max", "10000001"]).contains("at most 10000000"));
    }

    #[test]
    fn another_machine_is_refused_unless_it_is_mine() {
        let url = format!("ws://192.0.2.1:8441/v1/connect#{KEY}");
        let rest = ["--rest", "http://192.0.2.1:8440"];
        for target in [&rest[..], &["--device-url", &url]] {
            let mut more = Vec::from(["keepstep-loadgen", "relay"]);
            let local = format!("ws://127.0.0.1:1/v1/connect#{KEY}");
            if target[0] == "--rest" {
                more.extend(["--device-url", &local]);
            } else {
                more.extend(["--rest", "http://127.0.0.1:1"]);
            }
            more.extend(target);
            let arguments = Arguments::parse_from(&more);
            let checked = arguments.check().and_then(|()| arguments.device_address());
            assert!(checked.is_err_and(|error| format!("{error:#}").contains("--target-is-mine")));
            more.push("--target-is-mine");
            let arguments = Arguments::parse_from(&more);
            assert!(arguments.check().and_then(|()| arguments.device_address()).is_ok());
        }
    }

    #[test]
    fn the_device_address_needs_the_servers_key() -> Result<()> {
        let found = arguments(&[]).device_address()?;
        assert_eq!(found.url, "ws://127.0.0.1:8441/v1/connect");
        assert_eq!(found.server_key[..3], [0x00, 0x11, 0x22]);
        for key in ["", "#", "#00", &format!("#{}", "g".repeat(64))] {
            let mut arguments = arguments(&[]);
            arguments.device_url = format!("ws://127.0.0.1:8441/v1/connect{key}");
            assert!(arguments.device_address().is_err(), "{key}");
        }
        Ok(())
    }
}
