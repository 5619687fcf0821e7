//! The coordinates of curve25519-dalek's points, which the library neither shows nor takes (docs/adr/0330).
//!
//! A point is 20 integers. Where each coordinate is, the compiler finds from the base point; a type of another size does not compile.

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::EdwardsPoint;

use crate::lanes::Limbs;

pub(crate) const ONE: Limbs = [1, 0, 0, 0, 0];

/// The base point: x, y and x·y.
const BASE_POINT: [Limbs; 3] = [
    [1_738_742_601_995_546, 1_146_398_526_822_698, 2_070_867_633_025_821, 562_264_141_797_630, 587_772_402_128_613],
    [1_801_439_850_948_184, 1_351_079_888_211_148, 450_359_962_737_049, 900_719_925_474_099, 1_801_439_850_948_198],
    [1_841_354_044_333_475, 16_398_895_984_059, 755_974_180_946_558, 900_171_276_175_154, 1_821_297_809_914_039],
];

/// Where X, Y, Z and T are in the library's type.
#[derive(Clone, Copy)]
pub(crate) struct Places([usize; 4]);

impl Places {
    /// `None` where the library has another representation.
    pub(crate) const FOUND: Option<Self> = places();

    /// X, Y, Z and T; limbs below 2^52.
    pub(crate) fn coordinates(self, point: &EdwardsPoint) -> [Limbs; 4] {
        // SAFETY: the sizes are equal, and any byte may be part of an integer.
        let held: [Limbs; 4] = unsafe { std::mem::transmute(*point) };
        self.0.map(|place| held[place])
    }

    /// The point of X, Y, Z and T, of a point of the curve, limbs below 2^51.
    pub(crate) fn point(self, coordinates: [Limbs; 4]) -> EdwardsPoint {
        let mut held = [[0; 5]; 4];
        for (place, coordinate) in self.0.into_iter().zip(coordinates) {
            held[place] = coordinate;
        }
        // SAFETY: the sizes are equal, and the type holds nothing but these 20 integers, whose order and radix `FOUND` found.
        unsafe { std::mem::transmute::<[Limbs; 4], EdwardsPoint>(held) }
    }
}

const fn places() -> Option<Places> {
    // SAFETY: the sizes are equal, and any byte may be part of an integer.
    let held: [Limbs; 4] = unsafe { std::mem::transmute(ED25519_BASEPOINT_POINT) };
    let [x, y, product] = BASE_POINT;
    match (find(&held, &x), find(&held, &y), find(&held, &ONE), find(&held, &product)) {
        (Some(x), Some(y), Some(z), Some(t)) => Some(Places([x, y, z, t])),
        _ => None,
    }
}

const fn find(held: &[Limbs; 4], wanted: &Limbs) -> Option<usize> {
    let mut place = 0;
    while place < held.len() {
        let mut limb = 0;
        while limb < wanted.len() && held[place][limb] == wanted[limb] {
            limb += 1;
        }
        if limb == wanted.len() {
            return Some(place);
        }
        place += 1;
    }
    None
}
