//! How long and how fast a load is, and whom it may be for: the part of the command line that all generators have.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::runtime::{Builder, Runtime};

use crate::schedule::{Lengths, Schedule};

const DURATION_S_MAX: u64 = 24 * 60 * 60;
const THREADS_MAX: usize = 256;
const HTTP_PORT: u16 = 80;

/// Arguments of every load.
#[derive(Clone, Debug, clap::Args)]
pub struct Pace {
    /// Open loop: events a second over all connections, latency counted from when each was due; without it closed loop
    #[arg(long)]
    pub rate: Option<f64>,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10)]
    pub duration_s: u64,
    /// Seconds of the same load before, from when all first messages are answered: of an open loop, and of many streams
    #[arg(long, default_value_t = 2)]
    pub warm_up_s: u64,
    /// Open loop: seconds by which the warm-up is longer at most, while more is unanswered than comes in 100 ms
    #[arg(long, default_value_t = 5)]
    pub settle_s: u64,
    /// Seconds to wait in the end for acknowledgements and deliveries that are still missing, and before for first answers
    #[arg(long, default_value_t = 120)]
    pub finish_s: u64,
    /// Threads that drive the connections
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Allow addresses that are not this machine's own: only for a server that is yours to load
    #[arg(long)]
    pub target_is_mine: bool,
}

impl Pace {
    /// Checks the bounds.
    pub fn check(&self) -> Result<()> {
        ensure!((1..=DURATION_S_MAX).contains(&self.duration_s), "--duration-s is 1 to {DURATION_S_MAX}");
        ensure!(self.warm_up_s <= DURATION_S_MAX, "--warm-up-s is at most {DURATION_S_MAX}");
        ensure!(self.settle_s <= DURATION_S_MAX, "--settle-s is at most {DURATION_S_MAX}");
        ensure!(self.finish_s <= DURATION_S_MAX, "--finish-s is at most {DURATION_S_MAX}");
        ensure!((1..=THREADS_MAX).contains(&self.threads), "--threads is 1 to {THREADS_MAX}");
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "--rate is above 0");
        Ok(())
    }

    /// Events to have ready for all connections together: what the rate needs, in a closed loop `closed_loop`.
    pub fn events(&self, closed_loop: u64) -> u64 {
        match self.rate {
            None => closed_loop,
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "callers check the range")]
            #[expect(clippy::cast_precision_loss, reason = "at most a day of seconds")]
            Some(rate) => (rate * (self.warm_up_s + self.settle_s + self.duration_s) as f64).ceil() as u64,
        }
    }

    /// Publish messages, of so many events each, to have ready for each connection beside its first ones.
    pub fn frames(&self, connections: usize, events_per_frame: usize, closed_loop: u64) -> usize {
        let per_round = (connections * events_per_frame) as u64;
        usize::try_from(self.events(closed_loop).div_ceil(per_round)).unwrap_or(usize::MAX)
    }

    /// First messages of a connection: before a rate begins, each has one at least.
    pub fn first_frames(&self, wanted: usize) -> usize {
        wanted.max(usize::from(self.rate.is_some()))
    }

    /// Begins a run of these phases now, whose messages have so many events each, and of which so many are first ones.
    pub fn begin(&self, connections: usize, events_per_frame: usize, first_messages: usize) -> Schedule {
        #[expect(clippy::cast_precision_loss, reason = "at most hundreds")]
        let frames_per_s = self.rate.map(|rate| rate / events_per_frame as f64);
        let [warm_up, settle, measured, finish] =
            [self.warm_up_s, self.settle_s, self.duration_s, self.finish_s].map(Duration::from_secs);
        Schedule::begin(Lengths { warm_up, settle, measured, finish }, frames_per_s, connections, first_messages)
    }

    /// What drives the connections.
    pub fn runtime(&self) -> Result<Runtime> {
        Ok(Builder::new_multi_thread().worker_threads(self.threads).enable_all().build()?)
    }

    /// The address of `host` or `host:port`.
    ///
    /// # Errors
    /// The name has none, or it is another machine's and nobody said that it is theirs to load.
    pub fn resolve(&self, host: &str) -> Result<SocketAddr> {
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let mut found = if has_port { host.to_socket_addrs()? } else { (host, HTTP_PORT).to_socket_addrs()? };
        let address = found.next().context("the name has no address")?;
        ensure!(
            address.ip().is_loopback() || self.target_is_mine,
            "{address} is not this machine: --target-is-mine says that you may load it"
        );
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        pace: Pace,
    }

    fn pace(given: &[&str]) -> Pace {
        Line::parse_from(["load"].iter().chain(given)).pace
    }

    #[test]
    fn numbers_out_of_their_bounds_are_refused_by_name() {
        assert!(pace(&[]).check().is_ok());
        for (argument, value) in [
            ("--duration-s", "0"),
            ("--duration-s", "86401"),
            ("--warm-up-s", "86401"),
            ("--settle-s", "86401"),
            ("--finish-s", "86401"),
            ("--threads", "0"),
            ("--rate", "0"),
        ] {
            let refused = pace(&[argument, value]).check();
            assert!(refused.is_err_and(|error| error.to_string().contains(argument)), "{argument} {value}");
        }
    }

    #[test]
    fn an_open_loop_has_the_events_that_its_rate_needs() {
        let open = pace(&["--rate", "1000", "--duration-s", "10", "--warm-up-s", "1"]);
        assert_eq!((open.events(7), pace(&[]).events(7)), (16_000, 7));
        assert_eq!((open.frames(4, 10, 7), pace(&[]).frames(4, 10, 80)), (400, 2));
        assert_eq!([open.first_frames(0), open.first_frames(7), pace(&[]).first_frames(0)], [1, 7, 0]);
    }

    #[test]
    fn another_machine_is_refused_unless_it_is_mine() -> Result<()> {
        let refused = pace(&[]).resolve("192.0.2.1:8440");
        assert!(refused.is_err_and(|error| error.to_string().contains("--target-is-mine")));
        assert_eq!(pace(&["--target-is-mine"]).resolve("192.0.2.1")?.port(), HTTP_PORT);
        assert_eq!(pace(&[]).resolve("127.0.0.1:8440")?.port(), 8440);
        Ok(())
    }
}
