//! Sums of many multiples: the very points that curve25519-dalek finds.

use curve25519_dalek::EdwardsPoint;
use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::{Identity, VartimeMultiscalarMul};
use keepstep_core::decompression::decompress_many;
use keepstep_core::hash::blake3;
use keepstep_core::multiscalar::{Multiple, is_worth, sum, upper_half};
use proptest::prelude::*;

use crate::support::cases;

/// Of every way to cut numbers into digits, and around where it changes.
const COUNTS: [usize; 12] = [1, 2, 8, 24, 100, 127, 128, 129, 319, 320, 321, 700];

/// With Z = 1, as decompression gives points: as many as asked, most of them on the curve's large part plus one of small order.
fn points(count: usize) -> Vec<EdwardsPoint> {
    let encodings: Vec<[u8; 32]> = (0..count * 3 + 64).map(|seed| blake3(&seed.to_be_bytes())).collect();
    let mut points: Vec<_> = decompress_many(&encodings).into_iter().flatten().take(count).collect();
    for (point, small) in points.iter_mut().skip(3).step_by(7).zip(&EIGHT_TORSION) {
        *point = CompressedEdwardsY(small.compress().to_bytes()).decompress().unwrap();
    }
    points
}

/// The sums have the same coordinates but for their common factor: sums and multiples of them agree as well.
fn check(numbers: &[i128], points: &[EdwardsPoint]) {
    let multiples: Vec<_> = numbers.iter().zip(points).map(|(&times, point)| Multiple { times, point }).collect();
    // Of a point of small order a scalar's negative, which is modulo the large part's order, is not the negative multiple.
    let signed = numbers.iter().zip(points).map(|(times, point)| if *times < 0 { -point } else { *point });
    let sizes = numbers.iter().map(|times| Scalar::from(times.unsigned_abs()));
    let expected = EdwardsPoint::vartime_multiscalar_mul(sizes, signed);
    if let Some(found) = sum(&multiples) {
        assert_eq!(found, expected);
        assert_eq!(found + ED25519_BASEPOINT_POINT, expected + ED25519_BASEPOINT_POINT);
        assert_eq!(found * Scalar::from(7_u8), expected * Scalar::from(7_u8));
    } else {
        assert!(!is_worth(usize::MAX), "only where the processor does not have it");
    }
}

fn numbers(count: usize, seed: u8) -> Vec<i128> {
    let number =
        |at: usize| i128::from_le_bytes(*blake3(&[&at.to_be_bytes()[..], &[seed]].concat()).first_chunk().unwrap());
    (0..count).map(number).collect()
}

#[test]
fn sums_of_any_number_of_multiples_are_the_librarys() {
    for count in COUNTS {
        check(&numbers(count, 1), &points(count));
    }
}

#[test]
fn numbers_at_the_edges_of_their_digits_count_as_often_as_they_say() {
    let mut edges = vec![0, 1, -1, i128::MAX, i128::MIN, i128::MIN + 1];
    for bit in 0..127 {
        let power = 1_i128 << bit;
        edges.extend([power, -power, power - 1, 1 - power, power + 1, !power]);
    }
    for digit in [0x88_u8, 0x80, 0x7f, 0x77, 0x78, 0x87, 0x81] {
        let repeated = i128::from_le_bytes([digit; 16]);
        edges.extend([repeated, repeated.wrapping_neg(), repeated.wrapping_add(1), repeated.wrapping_sub(1)]);
    }
    let bits_of_six = (0..21).fold(0_i128, |all, window| all | 32 << (6 * window));
    edges.extend([bits_of_six, -bits_of_six, bits_of_six - 1, bits_of_six >> 1]);
    check(&edges, &points(edges.len()));
    for some in edges.chunks(40).chain(edges.chunks(200)) {
        check(some, &points(some.len()));
        for number in some {
            check(&[*number], &[ED25519_BASEPOINT_POINT]);
        }
    }
}

#[test]
fn points_that_meet_themselves_their_negatives_or_nothing_are_added_like_others() {
    let [point, negative] = [ED25519_BASEPOINT_POINT, -ED25519_BASEPOINT_POINT];
    for count in COUNTS {
        check(&vec![5; count], &vec![point; count]);
        check(&numbers(count, 2), &vec![point; count]);
        check(&vec![i128::MAX; count], &[point, negative].repeat(count)[..count]);
        check(&vec![-9; count], &vec![EdwardsPoint::identity(); count]);
        check(&numbers(count, 3), &EIGHT_TORSION.repeat(count)[..count]);
    }
}

#[test]
fn the_upper_half_of_a_point_is_two_to_the_128th_of_it() {
    let power = Scalar::from(1_u128 << 127) + Scalar::from(1_u128 << 127);
    for point in points(20).iter().chain(&EIGHT_TORSION) {
        assert_eq!(upper_half(point), point * power);
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn sums_of_random_multiples_are_the_librarys(numbers in proptest::collection::vec(any::<i128>(), 1..400)) {
        check(&numbers, &points(numbers.len()));
    }
}
