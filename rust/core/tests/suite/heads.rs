//! Heads: authors packed and unpacked, and what is refused.

use std::sync::Arc;

use keepstep_core::head::{AUTHORS_PACKED_MAX, Author, SEQ_MAX, StreamHead, TIME_MS_MAX};

use crate::support::{USER_KEY, new_stream};

fn head(seq: u64) -> StreamHead {
    StreamHead { seq, chain: [9; 32], received_at_ms: 5, ..StreamHead::clone(&new_stream(3, "notes")) }
}

fn author(device_pk: i64) -> Author {
    Author { device_pk, last_n: 2, last_seq: 4, last_hash: [1; 32] }
}

#[test]
fn packed_authors_come_back_in_order() {
    let rows: Vec<Author> = [7, -1, 3].map(author).to_vec();
    let stored = head(9).with_stored_authors(&[], rows).unwrap();
    assert!(stored.authors_in_table && stored.authors_packed().is_empty());
    let packed = StreamHead { authors_in_table: false, ..stored }.authors_packed();
    assert_eq!(packed.len(), 3 * 56);
    let loaded = head(9).with_stored_authors(&packed, Vec::new()).unwrap();
    assert_eq!(*loaded.authors, [author(-1), author(3), author(7)]);
    assert!(!loaded.authors_in_table);
    assert_eq!(loaded.authors_packed(), packed);
    assert_eq!(loaded.author(3), Some(&author(3)));
    assert_eq!(loaded.author(4), None);
}

#[test]
fn a_new_stream_starts_at_its_own_chain_with_nobody() {
    let head = new_stream(3, "notes");
    assert_eq!((head.seq, head.received_at_ms, head.authors.len()), (0, 0, 0));
    assert_eq!(head.chain, keepstep_core::hash::chain_0(&USER_KEY, "notes"));
    assert!(StreamHead::clone(&head).with_stored_authors(&[], Vec::new()).is_ok());
}

#[test]
fn authors_that_cannot_be_are_refused() {
    let refused = |head: StreamHead, rows: Vec<Author>| head.with_stored_authors(&[], rows).is_err();
    assert!(refused(head(9), vec![]));
    assert!(refused(head(0), vec![author(1)]));
    assert!(refused(head(9), vec![author(1), author(1)]));
    assert!(refused(head(3), vec![author(1)]));
    assert!(refused(head(9), vec![Author { last_seq: 0, ..author(1) }]));
    assert!(refused(head(9), vec![Author { last_n: 0, ..author(1) }]));
    assert!(refused(head(9), vec![Author { last_n: u64::MAX, ..author(1) }]));
    assert!(refused(head(SEQ_MAX + 1), vec![author(1)]));
    assert!(refused(StreamHead { received_at_ms: TIME_MS_MAX + 1, ..head(9) }, vec![author(1)]));
    assert!(head(9).with_stored_authors(&[0; 55], Vec::new()).is_err());
    let packed = StreamHead { authors: Arc::from([author(1)]), ..head(9) }.authors_packed();
    assert!(head(9).with_stored_authors(&packed, vec![author(2)]).is_err());
    assert!(head(9).with_stored_authors(&packed.repeat(AUTHORS_PACKED_MAX + 1), Vec::new()).is_err());
}
