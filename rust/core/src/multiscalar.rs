//! Sums of many multiples of points, eight additions at a time.
//!
//! Pippenger's method, with the windows as lanes: a multiple is cut into signed digits, and in lockstep each lane adds the point to the
//! bucket of its window's digit. In the end every window's buckets are summed up, each as often as its digit says, and the windows
//! joined (docs/adr/0352). The additions are complete: no point, of whatever order, needs a case of its own. Nothing here is secret.

use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;

/// A multiple of a point.
pub struct Multiple<'a> {
    /// How often.
    pub times: i128,
    /// Of what.
    pub point: &'a EdwardsPoint,
}

/// Whether the sum of so many multiples is faster here than by the library.
pub fn is_worth(count: usize) -> bool {
    #[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
    return count >= lockstep::WORTH && lockstep::is_available();
    #[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
    return count == usize::MAX;
}

/// The sum; `None` where the processor or the library's representation does not allow it, or a point has a Z that is not 1, which
/// decompressed ones have.
pub fn sum(multiples: &[Multiple<'_>]) -> Option<EdwardsPoint> {
    #[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
    return lockstep::sum(multiples);
    #[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
    return None;
}

/// How often a point and 2^128 times the point are in the scalar's multiple.
pub fn halves(scalar: &Scalar) -> [i128; 2] {
    let (halves, _) = scalar.as_bytes().as_chunks::<16>();
    let [lower, upper] = [0, 1].map(|half| i128::from_le_bytes(halves[half]));
    // What counts as negative below is one too few above.
    [lower, upper + i128::from(lower < 0)]
}

/// 2^128 times the point, as decompression gives points, so that a multiple of 256 bits becomes two.
pub fn upper_half(point: &EdwardsPoint) -> EdwardsPoint {
    let mut doubled = point.mul_by_cofactor();
    for _ in 1..42 {
        doubled = doubled.mul_by_cofactor();
    }
    let upper = doubled + doubled;
    let upper = upper + upper;
    upper.compress().decompress().unwrap_or(upper)
}

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
#[allow(unsafe_code)]
mod lockstep {
    use std::arch::x86_64::{__m512i, _mm512_load_si512, _mm512_store_si512};

    use curve25519_dalek::edwards::EdwardsPoint;
    use curve25519_dalek::traits::Identity;

    use super::Multiple;
    use crate::coordinates::{ONE, Places};
    use crate::lanes::{Field, LANES, Limbs, are_available, transposed};

    /// From so many multiples on it is faster than the library.
    pub(super) const WORTH: usize = 64;

    const ZERO: Limbs = [0; 5];
    /// Twice the curve's constant d.
    const TWICE_D: Limbs =
        [1_859_910_466_990_425, 932_731_440_258_426, 1_072_319_116_312_658, 1_815_898_335_770_999, 633_789_495_995_903];

    /// Into which digits a number of up to 128 bits is cut.
    #[derive(Clone, Copy)]
    struct Cut {
        /// Of a digit.
        bits: u32,
        /// Of digits in all, a multiple of `LANES`; what is beyond the number is zero.
        windows: u32,
    }

    impl Cut {
        /// The one with the fewest additions: one a multiple and group of windows, two a bucket and group.
        fn for_multiples(count: usize) -> Self {
            match count {
                0..128 => Self { bits: 4, windows: 32 },
                128..320 => Self { bits: 6, windows: 24 },
                _ => Self { bits: 8, windows: 16 },
            }
        }

        /// Buckets of a window, one for each size of a digit and one for zeros.
        fn buckets(self) -> usize {
            (1 << (self.bits - 1)) + 1
        }

        /// What is added to each digit so that none is negative; nothing to the last, of fewer bits.
        fn bias(self, window: u32) -> i16 {
            if (window + 1) * self.bits <= u128::BITS { (1 << (self.bits - 1)) - 1 } else { 0 }
        }

        /// The digits' biases together.
        fn biases(self) -> u128 {
            (0..u128::BITS / self.bits)
                .fold(0, |all, window| all | u128::from(self.bias(window).unsigned_abs()) << (window * self.bits))
        }

        /// A digit of a number that has its `biases`.
        fn digit(self, biased: u128, window: u32) -> i16 {
            let [lowest, ..] = biased.checked_shr(window * self.bits).unwrap_or(0).to_le_bytes();
            i16::from(lowest & (u8::MAX >> (u8::BITS - self.bits))) - self.bias(window)
        }
    }

    /// Coordinates of a point, or of one a lane: X, Y, Z and T = X·Y/Z.
    #[derive(Clone, Copy)]
    struct Points {
        x: Field,
        y: Field,
        z: Field,
        t: Field,
    }

    /// Y - X, Y + X, 2d·T and its negative, of a point with Z = 1.
    type Addend = [Limbs; 4];

    /// One point: the limbs of its coordinates, and four more.
    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Bucket([u64; 24]);

    const EMPTY: Bucket = {
        let mut limbs = [0; 24];
        (limbs[5], limbs[10]) = (1, 1);
        Bucket(limbs)
    };

    /// Buckets of `LANES` windows: those of a lane together.
    struct Buckets {
        held: Vec<Bucket>,
        of_a_lane: usize,
    }

    pub(super) fn is_available() -> bool {
        Places::FOUND.is_some() && are_available()
    }

    pub(super) fn sum(multiples: &[Multiple<'_>]) -> Option<EdwardsPoint> {
        let places = Places::FOUND?;
        if !are_available() {
            return None;
        }
        // SAFETY: the processor has what it needs, as was asked above.
        unsafe { sum_in_lanes(multiples, places) }
    }

    #[target_feature(enable = "avx512f,avx512ifma")]
    fn sum_in_lanes(multiples: &[Multiple<'_>], places: Places) -> Option<EdwardsPoint> {
        let cut = Cut::for_multiples(multiples.len());
        let mut points = Vec::with_capacity(multiples.len());
        for multiple in multiples {
            let [x, y, z, t] = places.coordinates(multiple.point);
            if z != ONE {
                return None;
            }
            points.push([x, y, t]);
        }
        let addends = addends(&points);
        let biases = cut.biases();
        let numbers: Vec<(u128, bool)> =
            multiples.iter().map(|multiple| (multiple.times.unsigned_abs() + biases, multiple.times < 0)).collect();
        let mut windows = Vec::new();
        let mut buckets = Buckets { held: vec![EMPTY; LANES * cut.buckets()], of_a_lane: cut.buckets() };
        for first in (0..cut.windows).step_by(LANES) {
            buckets.held.fill(EMPTY);
            for (&(number, negative), addend) in numbers.iter().zip(&addends) {
                let (mut sizes, mut signs) = ([0; LANES], 0);
                for (window, size) in (first..).zip(&mut sizes) {
                    let digit = cut.digit(number, window);
                    *size = usize::from(digit.unsigned_abs());
                    signs |= u8::from((digit < 0) != negative) << (window - first);
                }
                let sum = buckets.load(&sizes).plus_addend(addend, signs);
                buckets.store(&sizes, &sum);
            }
            windows.extend(buckets.total().each(places));
        }
        Some(joined(&windows, cut.bits))
    }

    /// The windows' sums, least significant first, as one.
    fn joined(windows: &[EdwardsPoint], bits: u32) -> EdwardsPoint {
        windows.iter().rev().fold(EdwardsPoint::identity(), |upper, window| {
            let mut moved = upper;
            for _ in 0..bits / 3 {
                moved = moved.mul_by_cofactor();
            }
            for _ in 0..bits % 3 {
                moved += moved;
            }
            moved + window
        })
    }

    /// What is added, of X, Y and T of each point.
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn addends(points: &[[Limbs; 3]]) -> Vec<Addend> {
        let mut addends = Vec::with_capacity(points.len());
        let (zero, twice_d) = (Field::splat(ZERO), Field::splat(TWICE_D));
        for chunk in points.chunks(LANES) {
            let mut rows = [[[0; LANES]; 5]; 3];
            for (lane, point) in chunk.iter().enumerate() {
                for (rows, limbs) in rows.iter_mut().zip(point) {
                    for (row, limb) in rows.iter_mut().zip(limbs) {
                        row[lane] = *limb;
                    }
                }
            }
            let [x, y, t] = [Field::load(&rows[0]), Field::load(&rows[1]), Field::load(&rows[2])];
            let t = t.multiply(&twice_d);
            let all = [y.subtract(&x).store(), y.add(&x).store(), t.store(), zero.subtract(&t).store()];
            addends.extend((0..chunk.len()).map(|lane| all.map(|rows| rows.map(|row| row[lane]))));
        }
        addends
    }

    impl Points {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn neutral() -> Self {
            let (zero, one) = (Field::splat(ZERO), Field::splat(ONE));
            Self { x: zero, y: one, z: one, t: zero }
        }

        /// `addend` added in every lane, subtracted in those of `signs`.
        #[inline]
        #[target_feature(enable = "avx512f,avx512ifma")]
        fn plus_addend(&self, addend: &Addend, signs: u8) -> Self {
            let [difference, sum, product, negative] =
                [Field::splat(addend[0]), Field::splat(addend[1]), Field::splat(addend[2]), Field::splat(addend[3])];
            let a = self.y.subtract(&self.x).multiply(&difference.replaced(signs, &sum));
            let b = self.y.add(&self.x).multiply(&sum.replaced(signs, &difference));
            let c = self.t.multiply(&product.replaced(signs, &negative));
            Self::completed(&a, &b, &c, &self.z.add(&self.z))
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512ifma")]
        fn plus(&self, other: &Self) -> Self {
            let a = self.y.subtract(&self.x).multiply(&other.y.subtract(&other.x));
            let b = self.y.add(&self.x).multiply(&other.y.add(&other.x));
            let c = self.t.multiply(&other.t).multiply(&Field::splat(TWICE_D));
            Self::completed(&a, &b, &c, &self.z.add(&self.z).multiply(&other.z))
        }

        /// The end of either addition ("add-2008-hwcd-3" for a = -1, complete as d is no square).
        #[inline]
        #[target_feature(enable = "avx512f,avx512ifma")]
        #[allow(clippy::many_single_char_names)] // they are the formula's
        fn completed(a: &Field, b: &Field, c: &Field, d: &Field) -> Self {
            let (e, f, g, h) = (b.subtract(a), d.subtract(c), d.add(c), b.add(a));
            Self { x: e.multiply(&f), y: g.multiply(&h), z: f.multiply(&g), t: e.multiply(&h) }
        }

        #[target_feature(enable = "avx512f,avx512ifma")]
        fn each(&self, places: Places) -> Vec<EdwardsPoint> {
            let all = [
                self.x.reduced().store(),
                self.y.reduced().store(),
                self.z.reduced().store(),
                self.t.reduced().store(),
            ];
            (0..LANES).map(|lane| places.point(all.map(|rows| rows.map(|row| row[lane])))).collect()
        }
    }

    impl Buckets {
        /// Of each lane the bucket of its number.
        #[inline]
        #[target_feature(enable = "avx512f,avx512ifma")]
        fn load(&self, numbers: &[usize; LANES]) -> Points {
            let mut rows = [[Field::splat(ZERO).0[0]; LANES]; 3];
            for (lane, number) in numbers.iter().enumerate() {
                let limbs = &self.held[lane * self.of_a_lane + number].0;
                for (part, rows) in rows.iter_mut().enumerate() {
                    // SAFETY: a bucket is aligned and has three times eight limbs.
                    rows[lane] = unsafe { _mm512_load_si512(limbs[part * LANES..].as_ptr().cast()) };
                }
            }
            let [low, middle, high] = [transposed(&rows[0]), transposed(&rows[1]), transposed(&rows[2])];
            Points {
                x: Field([low[0], low[1], low[2], low[3], low[4]]),
                y: Field([low[5], low[6], low[7], middle[0], middle[1]]),
                z: Field([middle[2], middle[3], middle[4], middle[5], middle[6]]),
                t: Field([middle[7], high[0], high[1], high[2], high[3]]),
            }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512ifma")]
        fn store(&mut self, numbers: &[usize; LANES], points: &Points) {
            let Points { x: Field(x), y: Field(y), z: Field(z), t: Field(t) } = points;
            let low = [x[0], x[1], x[2], x[3], x[4], y[0], y[1], y[2]];
            let middle = [y[3], y[4], z[0], z[1], z[2], z[3], z[4], t[0]];
            let high = [t[1], t[2], t[3], t[4], t[4], t[4], t[4], t[4]];
            let rows: [[__m512i; LANES]; 3] = [transposed(&low), transposed(&middle), transposed(&high)];
            for (lane, number) in numbers.iter().enumerate() {
                let limbs = &mut self.held[lane * self.of_a_lane + number].0;
                for (part, rows) in rows.iter().enumerate() {
                    // SAFETY: a bucket is aligned and has three times eight limbs.
                    unsafe { _mm512_store_si512(limbs[part * LANES..].as_mut_ptr().cast(), rows[lane]) };
                }
            }
        }

        /// In each lane the sum of its buckets, each as often as its number.
        #[target_feature(enable = "avx512f,avx512ifma")]
        fn total(&self) -> Points {
            let (mut running, mut total) = (Points::neutral(), Points::neutral());
            for number in (1..self.of_a_lane).rev() {
                running = running.plus(&self.load(&[number; LANES]));
                total = total.plus(&running);
            }
            total
        }
    }
}
