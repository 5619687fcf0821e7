//! Policies: what the payload of a policy event may say, and what each does with the events after it.

use std::sync::Arc;

use keepstep_core::error::Error;
use keepstep_core::hash::Hash;
use keepstep_core::head::StreamHead;
use keepstep_core::ingest::{Answer, Ingested, Keyed, Moved, Plan, Submission, ingest};
use keepstep_core::msgpack::write_integer;
use keepstep_core::policy::{Policy, Rules};
use keepstep_core::rooms::Rooms;
use proptest::prelude::*;

use crate::support::{Device, Draft, NOW_MS, Signed, cases, new_stream, parse, write_position};

fn payload(policy: u64, retention_class: u64, ttl_max_s: Option<u64>) -> Vec<u8> {
    bounded(policy, retention_class, ttl_max_s, None)
}

fn bounded(policy: u64, retention_class: u64, ttl_max_s: Option<u64>, bytes_max: Option<u64>) -> Vec<u8> {
    let mut output = vec![0x95, 1];
    write_integer(&mut output, policy);
    write_integer(&mut output, retention_class);
    for bound in [ttl_max_s, bytes_max] {
        match bound {
            Some(bound) => write_integer(&mut output, bound),
            None => output.push(0xc0),
        }
    }
    output
}

/// A device that numbers its events itself.
struct Author {
    device: Device,
    n: u64,
    last: Hash,
}

impl Author {
    fn new(number: u8) -> Self {
        Self { device: Device::new(number), n: 0, last: [0; 32] }
    }

    fn next(&mut self, draft: Draft) -> Signed {
        self.n += 1;
        let event = self.device.sign(&Draft { n: self.n, prev: self.last[..16].to_vec(), ..draft });
        self.last = event.hash();
        event
    }

    fn policy(&mut self, policy: u64) -> Signed {
        self.next(Draft { kind: 1, payload: payload(policy, 1, None), ..Draft::default() })
    }

    fn run(&self, events: &[Signed], head: &Arc<StreamHead>) -> Ingested {
        let submissions = [self.device.submission(&parse(events))];
        let plan = Plan::new(&submissions);
        ingest(&submissions, &plan, vec![Some(Arc::clone(head))], Rooms::default(), NOW_MS).unwrap()
    }

    /// A new stream that begins with this policy.
    fn begin(&mut self, policy: u64) -> Arc<StreamHead> {
        let event = self.policy(policy);
        let Moved { new, .. } = self.run(&[event], &new_stream(3, "notes")).moved.remove(0);
        new
    }
}

fn at(position: (u64, &Hash)) -> Vec<u8> {
    let mut base = Vec::new();
    write_position(&mut base, position.0, position.1);
    base
}

fn own(n: u64) -> Vec<u8> {
    let mut base = Vec::new();
    write_integer(&mut base, n);
    base
}

#[test]
fn a_policy_is_what_its_payload_says() {
    let rules = Rules::decode(&payload(3, 0, Some(60))).unwrap();
    assert_eq!(rules, Rules { policy: Policy::Latest, retention_class: 0, ttl_max_s: Some(60), bytes_max: None });
    assert_eq!(Rules::decode(&bounded(0, 1, None, Some(9))).unwrap().bytes_max, Some(9));
    for number in 0..4 {
        assert_eq!(u64::from(Policy::from_number(number).unwrap().number()), number);
    }
    assert_eq!(Policy::from_number(4), None);
}

#[test]
fn a_policy_of_another_form_is_refused() {
    let good = payload(1, 1, None);
    let with = |at: usize, byte: u8| {
        let mut damaged = good.clone();
        damaged[at] = byte;
        Rules::decode(&damaged).unwrap_err().code()
    };
    assert_eq!(
        [with(0, 0x94), with(1, 2), with(2, 4), with(3, 2), with(4, 0), with(5, 0xc3)],
        ["malformed", "unsupported", "unsupported", "unsupported", "malformed", "malformed"]
    );
    assert_eq!(Rules::decode(&[&good[..], &[0]].concat()).unwrap_err().code(), "malformed");
    assert_eq!(Rules::decode(&good[..5]).unwrap_err().code(), "malformed");
    assert_eq!(Rules::decode(&[]).unwrap_err().code(), "malformed");
}

#[test]
fn a_policy_that_creates_its_stream_chooses_everything() {
    let mut author = Author::new(1);
    let event = author.next(Draft { kind: 1, payload: payload(1, 0, Some(60)), ..Draft::default() });
    let moved = &author.run(&[event], &new_stream(3, "notes")).moved[0];
    assert_eq!((moved.new.policy, moved.new.retention_class, moved.new.ttl_max_s), (Policy::Expect, 0, Some(60)));
    assert_eq!(moved.old.policy, Policy::Append);
}

#[test]
fn later_the_class_stays_and_only_append_is_given_up() {
    for (policy, then, class, stored) in
        [(0, 3, 1, true), (3, 3, 1, true), (3, 0, 1, false), (1, 2, 1, false), (0, 0, 0, false)]
    {
        let mut author = Author::new(1);
        let head = author.begin(policy);
        let event = author.next(Draft { kind: 1, payload: payload(then, class, None), ..Draft::default() });
        assert_eq!(author.run(&[event], &head).moved.len() == 1, stored, "{policy} {then} {class}");
    }
}

#[test]
fn expect_takes_the_head_as_a_position_or_as_ones_own_event() {
    let mut author = Author::new(1);
    let head = author.begin(1);
    let good = [at((1, &head.chain)), own(1)];
    let bad = [vec![0xc0], at((1, &[9; 32])), at((2, &head.chain)), own(0), own(2)];
    for (base, stored) in good.iter().map(|base| (base, true)).chain(bad.iter().map(|base| (base, false))) {
        let draft = Draft { n: 2, prev: author.last[..16].to_vec(), base: base.clone(), ..Draft::default() };
        let answer = author.run(&[author.device.sign(&draft)], &head).results.remove(0).remove(0);
        let conflict = Answer::Conflict { head_seq: 1, head_chain: head.chain };
        assert_eq!(answer != conflict, stored);
        assert_eq!(matches!(answer, Answer::New { .. }), stored);
    }
}

#[test]
fn a_policy_holds_within_its_own_batch() {
    let mut author = Author::new(1);
    let events = [author.next(Draft::default()), author.policy(1), author.next(Draft::default())];
    let answers = author.run(&events, &new_stream(3, "notes")).results.remove(0);
    assert!(matches!(answers[..], [Answer::New { count: 2, .. }, Answer::Conflict { head_seq: 2, .. }]));
}

#[test]
fn a_ttl_and_a_key_are_asked_for() {
    let mut author = Author::new(1);
    let first = author.next(Draft { kind: 1, payload: payload(3, 1, Some(60)), ..Draft::default() });
    let head = Arc::clone(&author.run(&[first], &new_stream(3, "notes")).moved[0].new);
    let key = Some(vec![7; 16]);
    for (ttl_s, key, stored) in
        [(Some(60), key.clone(), true), (None, key.clone(), false), (Some(61), key, false), (Some(60), None, false)]
    {
        let draft = Draft { n: 2, prev: author.last[..16].to_vec(), ttl_s, key, ..Draft::default() };
        let answer = author.run(&[author.device.sign(&draft)], &head).results.remove(0).remove(0);
        assert_eq!(matches!(answer, Answer::New { .. }), stored);
        assert!(stored || matches!(answer, Answer::Refused(Error::Unprocessable(_))));
    }
}

#[test]
fn only_latest_has_contenders() {
    let mut author = Author::new(1);
    let keyed = |author: &mut Author, byte: u8| author.next(Draft { key: Some(vec![byte; 16]), ..Draft::default() });
    let before = keyed(&mut author, 1);
    let events = [before, author.policy(3), keyed(&mut author, 2), author.policy(3), keyed(&mut author, 3)];
    let moved = &author.run(&events, &new_stream(3, "notes")).moved[0];
    let contender = |byte, seq| Keyed { key: [byte; 16], seq, hlc: NOW_MS << 16, device_id: [1; 16] };
    assert_eq!(moved.keyed, [contender(2, 3), contender(3, 5)]);
}

#[test]
fn a_policy_takes_a_managing_device() {
    let mut author = Author::new(1);
    let events = parse(&[author.policy(1)]);
    let submissions = [Submission { capabilities: 3, ..author.device.submission(&events) }];
    let plan = Plan::new(&submissions);
    let ingested = ingest(&submissions, &plan, vec![Some(new_stream(3, "notes"))], Rooms::default(), NOW_MS).unwrap();
    assert_eq!(ingested.results, [[Answer::Refused(Error::Forbidden)]]);
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn any_bytes_are_a_policy_or_an_error(payload in prop::collection::vec(any::<u8>(), 0..12)) {
        if let Err(error) = Rules::decode(&payload) {
            prop_assert!(["malformed", "unsupported"].contains(&error.code()));
        }
    }
}

#[test]
fn what_lost_its_place_need_not_build_on_the_head() {
    let mut author = Author::new(1);
    let head = author.begin(1);
    let draft = |base, seen| Draft { n: 2, prev: author.last[..16].to_vec(), base, seen, ..Draft::default() };
    let events = [author.device.sign(&draft(at((9, &[9; 32])), Some((9, [9; 32]))))];
    let anew = [Submission { anew: true, ..author.device.submission(&parse(&events)) }];
    for (submissions, stored) in [(anew, true), ([author.device.submission(&parse(&events))], false)] {
        let plan = Plan::new(&submissions);
        let ingested = ingest(&submissions, &plan, vec![Some(Arc::clone(&head))], Rooms::default(), NOW_MS).unwrap();
        assert_eq!(matches!(ingested.results[0][..], [Answer::New { count: 1, .. }]), stored);
    }
}
