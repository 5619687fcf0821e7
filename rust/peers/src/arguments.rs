//! What the command line says, and the bounds it must keep.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use keepstep_loadgen::pace::Pace;

/// Most events of one run: eight bytes each are held for their times, about a kilobyte where they are signed before.
const EVENTS_MAX: u64 = 20_000_000;
const CONNECTIONS_MAX: usize = 20_000;
const WINDOW_MAX: usize = 4096;
/// Connections that publish into one place and are told what the others of it publish: a user's devices.
pub(crate) const GROUP: usize = 3;
/// An event carries in its first bytes whose and which it is.
pub(crate) const PAYLOAD_BYTES_MIN: usize = 16;
const PAYLOAD_BYTES_MAX: usize = 32 * 1024;

/// Whose protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// NATS `JetStream`: the text protocol of its clients over TCP
    Nats,
    /// A Nostr relay (nostr-rs-relay, strfry): JSON over WebSocket, events signed beforehand
    Nostr,
    /// Centrifugo: JSON over WebSocket, clients that may publish
    Centrifugo,
}

/// What the connections do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Every connection publishes; nobody subscribes
    Publish,
    /// Groups of three connections: each publishes and is told what the other two publish
    Relay,
    /// One connection reads what was stored before
    CatchUp,
    /// Connections that are open and subscribed, and silent
    Idle,
}

/// How a `JetStream` server hands events to a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Delivery {
    /// By a consumer of the stream: what is stored, in order, from any position
    Stream,
    /// As it is published, before it is stored; nothing can be resumed
    Core,
}

/// Publishes events to another server as keepstep's load generator does to keepstep, and measures the same.
///
/// Prints one JSON object a line: {"phase": …} when a phase begins, and the results as the last line.
#[derive(Clone, Debug, Parser)]
#[command(name = "keepstep-peers", version)]
pub(crate) struct Arguments {
    /// Whose protocol is spoken
    #[arg(value_enum)]
    pub(crate) peer: Peer,
    /// What the connections do
    #[arg(value_enum)]
    pub(crate) workload: Workload,
    /// Host and port, and for WebSocket a path: 127.0.0.1:4222, 127.0.0.1:8000/connection/websocket
    #[arg(long)]
    pub(crate) address: String,
    /// Connections; a multiple of 3 for relay
    #[arg(long, default_value_t = 99)]
    pub(crate) connections: usize,
    /// Bytes of an event's payload
    #[arg(long, default_value_t = 256)]
    pub(crate) payload_bytes: usize,
    /// Events in flight on a connection
    #[arg(long, default_value_t = 40)]
    pub(crate) window: usize,
    #[command(flatten)]
    pub(crate) pace: Pace,
    /// Events made beforehand for all connections; the run ends when they are used up. For catch-up: how many are read
    #[arg(long, default_value_t = 100_000)]
    pub(crate) events_max: u64,
    /// NATS: how subscribers are told
    #[arg(long, value_enum, default_value_t = Delivery::Stream)]
    pub(crate) delivery: Delivery,
}

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// For WebSocket.
    pub(crate) url: String,
}

impl Arguments {
    /// Checks everything that can be checked before anything is opened.
    pub(crate) fn check(&self) -> Result<Target> {
        ensure!((1..=CONNECTIONS_MAX).contains(&self.connections), "--connections is 1 to {CONNECTIONS_MAX}");
        ensure!(
            self.workload != Workload::Relay || self.connections.is_multiple_of(GROUP),
            "--connections is a multiple of {GROUP} for this workload"
        );
        ensure!(
            (PAYLOAD_BYTES_MIN..=PAYLOAD_BYTES_MAX).contains(&self.payload_bytes),
            "--payload-bytes is {PAYLOAD_BYTES_MIN} to {PAYLOAD_BYTES_MAX}"
        );
        ensure!((1..=WINDOW_MAX).contains(&self.window), "--window is 1 to {WINDOW_MAX}");
        self.pace.check()?;
        ensure!((1..=EVENTS_MAX).contains(&self.events()), "at most {EVENTS_MAX} events");
        let host = self.address.split_once('/').map_or(self.address.as_str(), |(host, _)| host);
        let address = self.pace.resolve(host).with_context(|| format!("--address {host}"))?;
        Ok(Target { address, url: format!("ws://{}", self.address) })
    }

    /// Events to have ready for all connections together.
    pub(crate) fn events(&self) -> u64 {
        self.pace.events(self.events_max)
    }

    /// Connections with an identity of their own: in catch-up one, which fills the store.
    pub(crate) fn publishers(&self) -> usize {
        if self.workload == Workload::CatchUp { 1 } else { self.connections }
    }

    /// Events to have ready for each connection.
    pub(crate) fn events_per_connection(&self) -> usize {
        if self.workload == Workload::Idle {
            return 0;
        }
        self.pace.frames(self.publishers(), 1, self.events_max) + self.pace.first_frames(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(more: &[&str]) -> Arguments {
        let base = ["keepstep-peers", "nats", "relay", "--address", "127.0.0.1:4222"];
        Arguments::parse_from(base.iter().chain(more))
    }

    fn refusal(more: &[&str]) -> String {
        arguments(more).check().map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn numbers_out_of_their_bounds_are_refused_by_name() {
        assert_eq!(refusal(&[]), "");
        for (argument, value) in [
            ("--connections", "0"),
            ("--connections", "100"),
            ("--payload-bytes", "15"),
            ("--window", "0"),
            ("--duration-s", "0"),
            ("--threads", "0"),
            ("--rate", "0"),
        ] {
            assert!(refusal(&[argument, value]).contains(argument), "{argument} {value}");
        }
        assert!(refusal(&["--events-max", "20000001"]).contains("at most"));
    }

    #[test]
    fn another_machine_is_refused_unless_it_is_mine() {
        let address = ["keepstep-peers", "nats", "publish", "--address", "192.0.2.1:4222"];
        let refused = Arguments::parse_from(address).check();
        assert!(refused.is_err_and(|error| format!("{error:#}").contains("--target-is-mine")));
        let mine = Arguments::parse_from(address.iter().chain(&["--target-is-mine"])).check();
        assert!(mine.is_ok());
    }

    #[test]
    fn an_open_loop_has_the_events_that_its_rate_needs() {
        let found = arguments(&["--rate", "1000", "--duration-s", "10", "--warm-up-s", "1", "--connections", "3"]);
        assert_eq!((found.events(), found.events_per_connection()), (16_000, 5_335));
    }

    #[test]
    fn a_path_belongs_to_the_websocket_address_only() -> Result<()> {
        let mut arguments = arguments(&[]);
        arguments.address = "127.0.0.1:8000/connection/websocket".to_owned();
        let target = arguments.check()?;
        assert_eq!(target.address, SocketAddr::from(([127, 0, 0, 1], 8000)));
        assert_eq!(target.url, "ws://127.0.0.1:8000/connection/websocket");
        Ok(())
    }
}
