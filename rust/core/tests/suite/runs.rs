//! Runs: pages of consecutive rows, bounded in count and bytes.

use keepstep_core::run::{Run, WireRow};

fn run(sizes: &[usize]) -> Run {
    let mut run = Run::new(1, 3, 11, [0; 32]);
    for (index, size) in sizes.iter().enumerate() {
        let row = WireRow {
            seq: 11 + index as u64,
            device_id: &[2; 16],
            received_at_ms: 5,
            header: b"header",
            signature: &[3; 64],
            payload: Some(&vec![0; *size]),
            trace: None,
        };
        let number = u8::try_from(index).unwrap();
        run.push(&row, [number + 1; 32], [None, Some(70), Some(90)][index]).unwrap();
    }
    run
}

#[test]
fn a_page_holds_what_fits_and_at_least_one_row() {
    let run = run(&[10, 10, 10]);
    let row = run.page(10, 1, usize::MAX).unwrap().rows.len();
    let whole = run.page(10, 100, 100_000).unwrap();
    assert_eq!((whole.count, whole.last_seq, whole.chain, whole.rows.len()), (3, 13, [3; 32], 3 * row));
    let two = run.page(11, usize::MAX, 2 * row).unwrap();
    assert_eq!((two.count, two.last_seq, two.chain), (2, 13, [3; 32]));
    let one = run.page(11, usize::MAX, 2 * row - 1).unwrap();
    assert_eq!((one.count, one.last_seq, one.chain, one.rows), (1, 12, [2; 32], &whole.rows[row..2 * row]));
    assert_eq!((run.page(12, 5, 0).unwrap().count, run.page(12, 0, 5).unwrap().count), (1, 1));
}

#[test]
fn a_page_that_starts_outside_the_run_is_refused() {
    let run = run(&[10, 10]);
    for after in [0, 9, 12, u64::MAX] {
        assert!(run.page(after, 1, 1).is_err(), "{after}");
    }
}

#[test]
fn a_run_knows_its_ends_and_its_earliest_expiry() {
    let full = run(&[1, 1, 1]);
    assert_eq!((full.first_seq, full.last_seq(), full.chain(), full.expires_at_ms), (11, 13, [3; 32], Some(70)));
    assert!(full.size_bytes() > full.page(10, 9, 9999).unwrap().rows.len());
    let empty = run(&[]);
    assert_eq!((empty.last_seq(), empty.chain(), empty.expires_at_ms), (10, [0; 32], None));
}
