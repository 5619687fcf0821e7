//! Ingest: the decide table, event by event, and what it leaves for the database and the sessions.

use std::sync::Arc;

use keepstep_core::copy;
use keepstep_core::error::Error;
use keepstep_core::hash::chain_next;
use keepstep_core::head::{AUTHORS_PACKED_MAX, StreamHead, TIME_MS_MAX};
use keepstep_core::ingest::{Answer, FUTURE_MS_MAX, Ingested, Plan, Submission, ingest};
use keepstep_core::rooms::Rooms;

use crate::support::{Device, Draft, NOW_MS, Signed, id_at, new_stream, parse};

/// Ingests with these heads and no others.
fn run(submissions: &[Submission], heads: &[&Arc<StreamHead>]) -> Ingested {
    let plan = Plan::new(submissions);
    let find = |(user_pk, name): &(i64, Arc<str>)| {
        heads.iter().find(|head| (head.user_pk, &head.name) == (*user_pk, name)).map(|head| Arc::clone(head))
    };
    let heads = plan.streams.iter().map(find).collect();
    ingest(submissions, &plan, heads, Rooms::default(), NOW_MS).unwrap()
}

fn one(device: &Device, events: &[Signed], heads: &[&Arc<StreamHead>]) -> Ingested {
    run(&[device.submission(&parse(events))], heads)
}

fn answers(device: &Device, events: &[Signed], heads: &[&Arc<StreamHead>]) -> Vec<Answer> {
    one(device, events, heads).results.remove(0)
}

/// A head after `events` of one device in a new stream.
fn after(device: &Device, events: &[Signed], head: &Arc<StreamHead>) -> Arc<StreamHead> {
    Arc::clone(&one(device, events, &[head]).moved[0].new)
}

#[test]
fn new_events_are_numbered_and_chained() {
    let (device, head) = (Device::new(1), new_stream(3, "notes"));
    let events = device.series("notes", 1, &[0; 32], 3);
    let ingested = one(&device, &events, &[&head]);
    let chain =
        events.iter().zip(1..).fold(head.chain, |chain, (event, seq)| chain_next(&chain, seq, NOW_MS, &event.hash()));
    let answer = Answer::New { count: 3, first_seq: 1, received_at_ms: NOW_MS, chain };
    assert_eq!(ingested.results, [[answer]]);
    let moved = &ingested.moved[0];
    assert_eq!((moved.old.seq, moved.new.seq, moved.new.chain, moved.new.received_at_ms), (0, 3, chain, NOW_MS));
    let author = moved.new.author(1).unwrap();
    assert_eq!((author.last_n, author.last_seq, author.last_hash), (3, 3, events[2].hash()));
    assert_eq!(
        (moved.run.first_seq, moved.run.last_seq(), moved.run.chain(), moved.run.prev_chain),
        (1, 3, chain, head.chain)
    );
    assert!(moved.changed_authors.is_empty());
}

#[test]
fn time_never_steps_back_in_a_stream() {
    let device = Device::new(1);
    let head = Arc::new(StreamHead { received_at_ms: NOW_MS + 77, ..StreamHead::clone(&new_stream(3, "notes")) });
    let moved = one(&device, &device.series("notes", 1, &[0; 32], 1), &[&head]).moved;
    assert_eq!(moved[0].new.received_at_ms, NOW_MS + 77);
}

#[test]
fn consecutive_events_of_different_streams_are_not_one_run() {
    let device = Device::new(1);
    let (a, b) = (new_stream(9, "a"), new_stream(4, "b"));
    let b = after(&device, &device.series("b", 1, &[0; 32], 1), &b);
    let events =
        [device.series("a", 1, &[0; 32], 1), device.series("b", 2, &b.author(1).unwrap().last_hash, 1)].concat();
    let ingested = one(&device, &events, &[&b, &a]);
    assert_eq!(ingested.results[0].len(), 2);
    let places: Vec<_> = ingested.moved.iter().map(|moved| moved.new.stream_pk).collect();
    assert_eq!(places, [4, 9]);
}

#[test]
fn a_refused_event_ends_a_run_and_changes_nothing() {
    let device = Device::new(1);
    let mut events = device.series("notes", 1, &[0; 32], 3);
    events[1].signature[40] ^= 1;
    let answers = answers(&device, &events, &[&new_stream(3, "notes")]);
    assert!(matches!(answers[0], Answer::New { count: 1, .. }));
    assert_eq!(answers[1], Answer::Refused(Error::BadSignature));
    assert_eq!(answers[2], Answer::OutOfOrder { last_n: 1, last_hash: events[0].hash() });
}

#[test]
fn author_numbers_decide_what_is_new() {
    let (device, stream) = (Device::new(1), new_stream(3, "notes"));
    let stored = device.series("notes", 1, &[0; 32], 3);
    let head = after(&device, &stored, &stream);
    let last = stored[2].hash();
    let forged = device.sign(&Draft { n: 3, prev: vec![8; 16], ..Draft::default() });
    let wrong_prev = device.sign(&Draft { n: 4, prev: vec![8; 16], ..Draft::default() });
    let too_far = device.sign(&Draft { n: 5, prev: last[..16].to_vec(), ..Draft::default() });
    let mut events = vec![stored[2].clone(), forged, stored[0].clone(), wrong_prev, too_far];
    events.extend(device.series("notes", 4, &last, 1));
    let answers = answers(&device, &events, &[&head]);
    assert_eq!(answers[0], Answer::Duplicate { seq: 3, stored: Some((head.chain, NOW_MS)) });
    assert_eq!(answers[1], Answer::IdReused { seq: 3, hash: last });
    assert_eq!(answers[2], Answer::Lookup { index: 2, n: 1, hash: stored[0].hash(), last_seq: 3 });
    let out_of_order = Answer::OutOfOrder { last_n: 3, last_hash: last };
    assert_eq!(answers[3..5], [out_of_order.clone(), out_of_order]);
    assert!(matches!(answers[5], Answer::New { count: 1, first_seq: 4, .. }));
}

#[test]
fn a_duplicate_that_is_not_the_head_has_no_chain_to_show() {
    let (device, other, stream) = (Device::new(1), Device::new(2), new_stream(3, "notes"));
    let stored = device.series("notes", 1, &[0; 32], 1);
    let head = after(&device, &stored, &stream);
    let head = after(&other, &other.series("notes", 1, &[0; 32], 1), &head);
    assert_eq!(answers(&device, &stored, &[&head]), [Answer::Duplicate { seq: 1, stored: None }]);
}

#[test]
fn duplicates_of_the_same_batch_are_answered_from_it() {
    let (device, stream) = (Device::new(1), new_stream(3, "notes"));
    let events = device.series("notes", 1, &[0; 32], 3);
    let reused = device.sign(&Draft { n: 2, prev: vec![8; 16], ..Draft::default() });
    let repeated = [&events[..], &[events[1].clone(), reused]].concat();
    let ingested = one(&device, &repeated, &[&stream]);
    let chain = chain_next(&chain_next(&stream.chain, 1, NOW_MS, &events[0].hash()), 2, NOW_MS, &events[1].hash());
    assert_eq!(ingested.results[0][1], Answer::Duplicate { seq: 2, stored: Some((chain, NOW_MS)) });
    assert_eq!(ingested.results[0][2], Answer::IdReused { seq: 2, hash: events[1].hash() });
    assert_eq!(ingested.moved[0].new.seq, 3);
}

#[test]
fn a_look_up_starts_at_the_last_stored_event_not_at_this_batch() {
    let (device, stream) = (Device::new(1), new_stream(3, "notes"));
    let stored = device.series("notes", 1, &[0; 32], 2);
    let head = after(&device, &stored, &stream);
    let mut events = device.series("notes", 3, &stored[1].hash(), 1);
    events.push(stored[0].clone());
    events.push(stored[1].clone());
    let answers = answers(&device, &events, &[&head]);
    assert_eq!(answers[1], Answer::Lookup { index: 1, n: 1, hash: stored[0].hash(), last_seq: 2 });
    assert_eq!(answers[2], Answer::Duplicate { seq: 2, stored: Some((head.chain, NOW_MS)) });
}

#[test]
fn only_new_events_need_the_capability() {
    let (device, stream) = (Device::new(1), new_stream(3, "notes"));
    let stored = device.series("notes", 1, &[0; 32], 1);
    let head = after(&device, &stored, &stream);
    let mut events = stored.clone();
    events.extend(device.series("notes", 2, &stored[0].hash(), 1));
    let submission = Submission { capabilities: 6, ..device.submission(&parse(&events)) };
    let results = run(&[submission], &[&head]).results;
    assert!(matches!(results[0][0], Answer::Duplicate { .. }));
    assert_eq!(results[0][1], Answer::Refused(Error::Forbidden));
    for (kind, stream) in [(5, "$devices"), (6, "$keys")] {
        let event = device.sign(&Draft { kind, stream: stream.into(), ..Draft::default() });
        let mut submission = device.submission(&parse(&[event]));
        let head = new_stream(1, stream);
        assert!(matches!(run(std::slice::from_ref(&submission), &[&head]).results[0][0], Answer::New { .. }));
        submission.capabilities = 3;
        assert_eq!(run(&[submission], &[&head]).results[0], [Answer::Refused(Error::Forbidden)]);
    }
}

#[test]
fn a_missing_stream_is_unknown_to_those_who_might_write_it() {
    let device = Device::new(1);
    let submission = device.submission(&parse(&device.series("notes", 1, &[0; 32], 1)));
    assert_eq!(run(std::slice::from_ref(&submission), &[]).results[0], [Answer::Refused(Error::UnknownStream)]);
    let submission = Submission { capabilities: 2, ..submission };
    assert_eq!(run(&[submission], &[]).results[0], [Answer::Refused(Error::Forbidden)]);
}

#[test]
fn times_more_than_ten_minutes_ahead_are_unprocessable() {
    let (device, stream) = (Device::new(1), new_stream(3, "notes"));
    let answer = |draft: Draft| answers(&device, &[device.sign(&draft)], &[&stream]).remove(0);
    let latest = NOW_MS + FUTURE_MS_MAX;
    assert!(matches!(
        answer(Draft { hlc: (latest << 16) + 65_535, id: id_at(latest), ..Draft::default() }),
        Answer::New { .. }
    ));
    for draft in
        [Draft { hlc: (latest + 1) << 16, ..Draft::default() }, Draft { id: id_at(latest + 1), ..Draft::default() }]
    {
        assert!(matches!(answer(draft), Answer::Refused(Error::Unprocessable(_))));
    }
    assert!(matches!(answer(Draft { hlc: 0, id: id_at(0), ..Draft::default() }), Answer::New { .. }));
}

#[test]
fn a_malformed_event_keeps_its_own_error() {
    let device = Device::new(1);
    let events = [device.sign(&Draft { n: 0, ..Draft::default() }), device.sign(&Draft::default())];
    let answers = answers(&device, &events, &[&new_stream(3, "notes")]);
    assert!(matches!(answers[0], Answer::Refused(Error::Malformed(_))));
    assert!(matches!(answers[1], Answer::New { .. }));
}

#[test]
fn a_suspect_is_verified_apart_with_the_same_answers() {
    let (device, stream) = (Device::new(1), new_stream(3, "notes"));
    let mut events = device.series("notes", 1, &[0; 32], 3);
    events[2].signature[40] ^= 1;
    let plain = answers(&device, &events, &[&stream]);
    let suspect = Submission { suspect: true, ..device.submission(&parse(&events)) };
    assert_eq!(run(&[suspect], &[&stream]).results[0], plain);
}

#[test]
fn suspects_and_others_of_one_batch_get_the_answers_that_they_get_without_suspicion() {
    let streams: Vec<_> = (1..=5).map(|number| new_stream(3 + number, &format!("notes{number}"))).collect();
    let mut submissions = Vec::new();
    for number in 1..=5_u8 {
        let device = Device::new(number);
        let mut events = device.series(&format!("notes{number}"), 1, &[0; 32], 40);
        if number % 2 == 0 {
            events[10 * usize::from(number) - 1].signature[40] ^= 1;
        }
        submissions.push((device, events));
    }
    let batch = |suspects: u8| -> Vec<Vec<Answer>> {
        let submission = |(device, events): &(Device, Vec<Signed>)| Submission {
            suspect: suspects >> device.device_pk & 1 == 1,
            ..device.submission(&parse(events))
        };
        run(&submissions.iter().map(submission).collect::<Vec<_>>(), &streams.iter().collect::<Vec<_>>()).results
    };
    let plain = batch(0);
    assert_eq!(plain.iter().flatten().filter(|answer| **answer == Answer::Refused(Error::BadSignature)).count(), 2);
    for suspects in [0b1_0100, 0b10_1010, 0b11_1110] {
        assert_eq!(batch(suspects), plain);
    }
}

#[test]
fn verdicts_hold_for_their_signer_only() {
    let (device, thief, stream) = (Device::new(1), Device::new(2), new_stream(3, "notes"));
    let events = parse(&device.series("notes", 1, &[0; 32], 2));
    let first = run(&[device.submission(&events)], &[&stream]).results;
    assert_eq!(events.verdict(0, &device.signer), Some(true));
    let stolen = run(&[thief.submission(&events)], &[&stream]).results;
    assert_eq!(stolen[0], [Answer::Refused(Error::BadSignature), Answer::Refused(Error::BadSignature)]);
    assert_eq!(run(&[device.submission(&events)], &[&stream]).results, first);
}

#[test]
fn rows_are_written_as_postgresql_reads_them() {
    let (device, stream) = (Device::new(1), new_stream(3, "notes"));
    let first = device.sign(&Draft { ttl_s: Some(60), payload: vec![7; 300], ..Draft::default() });
    let second = device.series("notes", 2, &first.hash(), 1).remove(0);
    let ingested = one(&device, &[first.clone(), second.clone()], &[&stream]);
    let moved = &ingested.moved[0];
    let first_chain = chain_next(&stream.chain, 1, NOW_MS, &first.hash());
    let mut expected = Vec::new();
    for (event, numbers, expires_at, chain) in [
        (&first, [1, 3, 1, NOW_MS, 1, 1, 0], Some(NOW_MS + 60_000), first_chain),
        (&second, [1, 3, 2, NOW_MS, 1, 2, 1], None, moved.new.chain),
    ] {
        expected.extend_from_slice(&12_u16.to_be_bytes());
        for number in numbers.into_iter().map(Some).chain([expires_at]) {
            match number {
                Some(number) => {
                    expected.extend_from_slice(&[&8_u32.to_be_bytes()[..], &u64::to_be_bytes(number)].concat());
                }
                None => expected.extend_from_slice(&u32::MAX.to_be_bytes()),
            }
        }
        for column in [&event.header, &event.signature, event.payload.as_ref().unwrap(), &chain.to_vec()] {
            expected.extend_from_slice(&u32::try_from(column.len()).unwrap().to_be_bytes());
            expected.extend_from_slice(column);
        }
    }
    assert_eq!(moved.copy_rows, expected);
    assert_eq!(moved.run.expires_at_ms, Some(NOW_MS + 60_000));
    assert_eq!((copy::HEADER.len(), copy::TRAILER), (19, [0xff, 0xff].as_slice()));
}

#[test]
fn authors_leave_the_row_when_there_are_too_many() {
    let mut head = new_stream(3, "notes");
    let most = u8::try_from(AUTHORS_PACKED_MAX).unwrap();
    for number in 1..=most {
        let device = Device::new(number);
        let moved = one(&device, &device.series("notes", 1, &[0; 32], 1), &[&head]).moved.remove(0);
        assert!(moved.changed_authors.is_empty() && !moved.new.authors_in_table);
        head = moved.new;
    }
    let one_more = Device::new(most + 1);
    let moved = one(&one_more, &one_more.series("notes", 1, &[0; 32], 1), &[&head]).moved.remove(0);
    assert_eq!(moved.changed_authors.len(), AUTHORS_PACKED_MAX + 1);
    assert!(moved.new.authors_packed().is_empty());
    let first = Device::new(1);
    let last_hash = moved.new.author(1).unwrap().last_hash;
    let moved = one(&first, &first.series("notes", 2, &last_hash, 1), &[&moved.new]).moved.remove(0);
    assert_eq!(
        moved.changed_authors.iter().map(|author| (author.device_pk, author.last_n)).collect::<Vec<_>>(),
        [(1, 2)]
    );
}

#[test]
fn a_time_that_no_uuid_can_hold_is_the_callers_mistake() {
    let plan = Plan::new(&[]);
    assert!(ingest(&[], &plan, Vec::new(), Rooms::default(), TIME_MS_MAX + 1).is_err());
    assert!(ingest(&[], &plan, Vec::new(), Rooms::default(), TIME_MS_MAX).unwrap().results.is_empty());
}

#[test]
fn what_an_author_has_seen_is_here() {
    let (device, stream) = (Device::new(1), new_stream(3, "notes"));
    let stored = device.series("notes", 1, &[0; 32], 2);
    let head = after(&device, &stored, &stream);
    let first = device.sign(&Draft { n: 3, prev: stored[1].hash()[..16].to_vec(), ..Draft::default() });
    let in_batch = chain_next(&head.chain, 3, NOW_MS, &first.hash());
    let good = [(0, stream.chain), (1, [9; 32]), (2, head.chain), (3, in_batch)];
    let bad = [(0, [9; 32]), (2, [9; 32]), (3, [9; 32]), (4, head.chain), (u64::MAX >> 1, [9; 32])];
    for (seen, known) in good.iter().map(|seen| (seen, true)).chain(bad.iter().map(|seen| (seen, false))) {
        let prev = first.hash()[..16].to_vec();
        let event = device.sign(&Draft { n: 4, prev, seen: Some(*seen), ..Draft::default() });
        let answers = answers(&device, &[first.clone(), event], &[&head]);
        assert_eq!(answers.get(1) == Some(&Answer::Refused(Error::UnknownPosition)), !known, "{seen:?}");
        assert!(!known || matches!(answers[..], [Answer::New { count: 2, .. }]));
    }
}
