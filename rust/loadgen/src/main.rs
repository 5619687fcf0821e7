//! keepstep's load generator: authenticated devices that publish signed events over real connections.
//!
//! It measures a server without measuring itself: events are signed before the clock starts, an open loop counts
//! latency from when an event was due, and what is delivered is compared byte by byte with what was published.

mod arguments;
mod catch_up;
mod connect;
mod connection;
mod fleet;
mod flood;
mod frames;
mod handshake;
mod identity;
mod idle;
mod load;
mod observations;
mod prepared;
mod report;
mod streams;
mod wire;
mod workload;

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use arguments::{Arguments, Workload};

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
    let runtime = arguments.pace.runtime()?;
    let time_ms = u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?;
    match arguments.workload {
        Workload::Publish | Workload::Relay => {
            let report = load::run(&runtime, arguments, time_ms)?;
            print(&report)?;
            Ok(report.clean())
        }
        Workload::Idle => {
            print(&runtime.block_on(idle::run(arguments, time_ms))?)?;
            Ok(true)
        }
        Workload::CatchUp => {
            print(&runtime.block_on(catch_up::run(arguments, time_ms))?)?;
            Ok(true)
        }
        Workload::Connect => {
            let report = runtime.block_on(connect::run(arguments, time_ms))?;
            print(&report)?;
            Ok(report.clean())
        }
    }
}

fn print(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
