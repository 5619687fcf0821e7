use std::slice;

use super::*;
use crate::identity::{Device, Seen};
use crate::prepared::Shape;
use crate::streams::STREAM;
use crate::wire::{from_server, write_array, write_nil, write_text};
use keepstep_core::msgpack::{write_binary, write_integer};
use keepstep_loadgen::schedule::Lengths;

const RECEIVED_AT_MS: u64 = 1_760_000_000_000;

struct Run {
    worker: Worker,
    author: Device,
    /// The chain as the server has it.
    chain: Hash,
}

/// The second of two devices, with two messages of the first sent already.
fn run() -> Result<Run> {
    let (author, reader) = (Device::new([5; 32])?, Device::new([5; 32])?);
    let seen = Seen { seq: 2, chain: [1; 32] };
    let sign = |device: &Device| Prepared::sign(device, seen, &Shape::of_one_stream(2, 2, 16), RECEIVED_AT_MS);
    let shared = Shared::new([5; 32], vec![author.id, reader.id], vec![sign(&author)?, sign(&reader)?], 1);
    for due_ns in &shared.due_ns[0] {
        due_ns.store(1, Ordering::Release);
    }
    let second = Duration::from_secs(1);
    let lengths = Lengths { warm_up: Duration::ZERO, settle: Duration::ZERO, measured: second, finish: second };
    let schedule = Arc::new(Schedule::begin(lengths, None, 2, 0));
    let plan = Plan { window: 4, events_per_frame: 2, subscribed: true, observe: true, first_frames: 0 };
    let worker = Worker::new(schedule, Arc::new(shared), 1, 1, plan, Arc::new(EventLatencies::new()?));
    Ok(Run { worker, author, chain: chain_0(&[5; 32], STREAM) })
}

impl Run {
    /// A page's rows, of the first device's events from `n` on at `seq` on, and the chain after them.
    fn rows(&mut self, seq: u64, n: usize, count: usize) -> Result<Vec<u8>> {
        let mut rows = Vec::new();
        for (seq, n) in (seq..).zip(n..n + count) {
            write_array(&mut rows, 7);
            write_integer(&mut rows, seq);
            write_binary(&mut rows, &self.author.id)?;
            write_integer(&mut rows, RECEIVED_AT_MS);
            let prepared = &self.worker.shared.prepared[0];
            rows.extend_from_slice(prepared.tail(0, n));
            self.chain = chain_next(&self.chain, seq, RECEIVED_AT_MS, prepared.hash(0, n));
        }
        write_binary(&mut rows, &self.chain)?;
        Ok(rows)
    }
}

/// As a server writes them.
fn answered(worker: &mut Worker, rid: u64, answers: &[Answer]) -> Result<()> {
    let mut message = Vec::new();
    write_array(&mut message, 3);
    write_integer(&mut message, from_server::ACCEPTED);
    write_integer(&mut message, rid);
    write_array(&mut message, u16::try_from(answers.len())?);
    for answer in answers {
        match answer {
            Answer::Accepted { count, seq, received_at_ms, chain } => {
                write_array(&mut message, 5);
                for number in [0, *count, *seq, *received_at_ms] {
                    write_integer(&mut message, number);
                }
                write_binary(&mut message, chain)?;
            }
            Answer::Refused(code) => {
                write_array(&mut message, 2);
                write_integer(&mut message, 2);
                write_text(&mut message, code)?;
            }
            Answer::Duplicate(_) => message.extend_from_slice(&[0x94, 1, 0xc0, 0xc0, 0xc0]),
        }
    }
    worker.received(&message, 1)
}

#[test]
fn deliveries_that_continue_the_position_are_counted_and_observed() -> Result<()> {
    let mut run = run()?;
    let (first, second) = (run.rows(1, 1, 3)?, run.rows(4, 4, 1)?);
    run.worker.delivered(0, 3, &first, 1)?;
    run.worker.delivered(0, 1, &second, 1)?;
    assert_eq!(run.worker.places, [(4, run.chain)]);
    assert_eq!((run.worker.measured.delivered_in_all, run.worker.measured.delivered), (4, 4));
    let observations = &run.worker.observations;
    let [Observed::Received { seq: 1, rows: 3, .. }, Observed::Received { seq: 4, rows: 1, .. }] =
        observations.seen[..]
    else {
        bail!("other observations");
    };
    let rows: Vec<_> = observations.rows.iter().map(|row| (row.author, row.n)).collect();
    assert_eq!(rows, [(0, 1), (0, 2), (0, 3), (0, 4)]);
    assert!(run.worker.measured.errors.is_empty());
    Ok(())
}

#[test]
fn a_gap_ends_the_run() -> Result<()> {
    let mut run = run()?;
    let rows = run.rows(2, 1, 1)?;
    assert!(run.worker.delivered(0, 1, &rows, 1).is_err_and(|error| error.to_string().contains("a gap")));
    Ok(())
}

#[test]
fn another_chain_ends_the_run_and_is_observed() -> Result<()> {
    let mut run = run()?;
    let mut rows = run.rows(1, 1, 1)?;
    *rows.last_mut().context("no rows")? ^= 1;
    assert!(run.worker.delivered(0, 1, &rows, 1).is_err_and(|error| error.to_string().contains("chain")));
    assert_eq!(run.worker.observations.seen.len(), 1);
    Ok(())
}

#[test]
fn an_event_that_was_not_sent_yet_ends_the_run() -> Result<()> {
    let mut run = run()?;
    run.worker.shared.due_ns[0][1].store(0, Ordering::Release);
    let rows = run.rows(1, 3, 1)?;
    let refused = run.worker.delivered(0, 1, &rows, 1);
    assert!(refused.is_err_and(|error| error.to_string().contains("before it was sent")));
    Ok(())
}

#[test]
fn a_changed_event_is_an_error_and_observed_as_it_came() -> Result<()> {
    let mut run = run()?;
    let other =
        Prepared::sign(&run.author, Seen { seq: 2, chain: [1; 32] }, &Shape::of_one_stream(1, 1, 16), RECEIVED_AT_MS)?;
    let mut rows = Vec::new();
    write_array(&mut rows, 7);
    write_integer(&mut rows, 1);
    write_binary(&mut rows, &run.author.id)?;
    write_integer(&mut rows, RECEIVED_AT_MS);
    rows.extend_from_slice(other.tail(0, 1));
    write_binary(&mut rows, &chain_next(&run.chain, 1, RECEIVED_AT_MS, other.hash(0, 1)))?;
    run.worker.delivered(0, 1, &rows, 1)?;
    assert_eq!(run.worker.measured.errors.len(), 1);
    let rows = &run.worker.observations.rows;
    assert_eq!(rows.len(), 1);
    let other_hash = rows[0].other.as_ref().map(|other| other.1);
    assert_eq!((rows[0].n, other_hash), (1, Some(*other.hash(0, 1))));
    Ok(())
}

#[test]
fn a_deleted_payload_is_read_past() -> Result<()> {
    let mut run = run()?;
    let event = run.author.event(&crate::identity::Draft {
        stream: STREAM,
        n: 1,
        previous: &[0; 32],
        seen: Seen { seq: 0, chain: [0; 32] },
        devices_seen: Seen { seq: 0, chain: [0; 32] },
        time_ms: RECEIVED_AT_MS,
        payload: b"",
    })?;
    let mut tail = Vec::new();
    write_binary(&mut tail, &event.header)?;
    write_binary(&mut tail, &event.signature)?;
    write_nil(&mut tail);
    write_nil(&mut tail);
    let mut cursor = Cursor::new(&tail);
    let (row, hash) = read_event(&run.worker.shared, 0, &mut cursor, [7; 16], RECEIVED_AT_MS)?;
    assert!(cursor.rest().is_empty());
    assert_eq!((row.other, hash), (Some(Box::new(([7; 16], event.hash))), event.hash));
    run.worker.end_publishing();
    Ok(())
}

#[test]
fn answers_are_counted_and_a_refusal_ends_the_publishing() -> Result<()> {
    let mut run = run()?;
    run.worker.next_frame = 2;
    run.worker.in_flight = 2;
    run.worker.shared.due_ns[1][0].store(1, Ordering::Release);
    let accepted = Answer::Accepted { count: 2, seq: 7, received_at_ms: 1, chain: [0; 32] };
    answered(&mut run.worker, 0, slice::from_ref(&accepted))?;
    assert_eq!((run.worker.measured.acknowledged_in_all, run.worker.in_flight), (2, 1));
    assert_eq!(run.worker.shared.acknowledged_seq[0].load(Ordering::Acquire), 8);
    assert!(run.worker.publishing);
    answered(&mut run.worker, 1, &[Answer::Duplicate(None), Answer::Refused("unavailable".into())])?;
    assert!(!run.worker.publishing);
    let errors: Vec<&str> = run.worker.measured.errors.keys().map(String::as_str).collect();
    assert_eq!(errors, ["duplicate", "unavailable"]);
    assert!(answered(&mut run.worker, 1, &[accepted]).is_err(), "nothing is in flight");
    let seen = [Observed::Answered { frame: 0, answers: 1 }, Observed::Answered { frame: 1, answers: 2 }];
    assert_eq!((&run.worker.observations.seen[..], run.worker.observations.answers.len()), (&seen[..], 3));
    Ok(())
}

#[test]
fn an_answer_for_fewer_events_than_were_sent_ends_the_run() -> Result<()> {
    let mut run = run()?;
    run.worker.next_frame = 1;
    run.worker.in_flight = 1;
    assert!(answered(&mut run.worker, 0, &[Answer::Refused("internal".into())]).is_err());
    Ok(())
}
