//! Points of many encodings at once.
//!
//! Most of what a point costs is one root in the field, some 250 squarings that nothing can share: so eight are taken in
//! lockstep where the processor multiplies eight numbers at once (docs/adr/0330). The result is the very point that curve25519-dalek
//! finds, whichever way it was found.

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};

/// The points of `encodings`; `None` where it is not canonical or not on the curve.
pub fn decompress_many(encodings: &[[u8; 32]]) -> Vec<Option<EdwardsPoint>> {
    #[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
    if let Some(points) = lockstep::decompress_many(encodings) {
        return points;
    }
    decompress_each(encodings)
}

/// What `decompress_many` does where no processor helps.
pub fn decompress_each(encodings: &[[u8; 32]]) -> Vec<Option<EdwardsPoint>> {
    encodings.iter().map(decompress).collect()
}

/// The point of a canonical encoding: y below the field's prime, and no sign on x = 0 (RFC 8032 section 5.1.3).
pub(crate) fn decompress(bytes: &[u8; 32]) -> Option<EdwardsPoint> {
    if is_canonical(bytes) { CompressedEdwardsY(*bytes).decompress() } else { None }
}

/// 2^255 - 19, little-endian: its lowest byte. All others are ones.
const FIELD_PRIME_LOW_BYTE: u8 = 0xed;

fn is_canonical(bytes: &[u8; 32]) -> bool {
    let (sign, top) = (bytes[31] >> 7, bytes[31] & 0x7f);
    let middle = &bytes[1..31];
    let all_ones = top == 0x7f && middle.iter().all(|&byte| byte == 0xff);
    if all_ones && bytes[0] >= FIELD_PRIME_LOW_BYTE {
        return false;
    }
    // x is 0 exactly where y is 1 or -1.
    let y_is_one = bytes[0] == 1 && top == 0 && middle.iter().all(|&byte| byte == 0);
    let y_is_minus_one = all_ones && bytes[0] == FIELD_PRIME_LOW_BYTE - 1;
    sign == 0 || !(y_is_one || y_is_minus_one)
}

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
#[allow(unsafe_code)]
mod lockstep {
    use curve25519_dalek::edwards::EdwardsPoint;

    use super::{decompress, is_canonical};
    use crate::coordinates::{ONE, Places};
    use crate::lanes::{Field, LANES, Limbs, are_available};

    /// From this many encodings on, one round of `LANES` is cheaper than one after the other.
    const WORTH: usize = 2;

    /// The curve's constant d.
    const D: Limbs =
        [929_955_233_495_203, 466_365_720_129_213, 1_662_059_464_998_953, 2_033_849_074_728_123, 1_442_794_654_840_575];
    const ROOT_OF_MINUS_ONE: Limbs =
        [1_718_705_420_411_056, 234_908_883_556_509, 2_233_514_472_574_048, 2_117_202_627_021_982, 765_476_049_583_133];

    /// `None` where this processor or the library's representation does not allow it.
    pub(super) fn decompress_many(encodings: &[[u8; 32]]) -> Option<Vec<Option<EdwardsPoint>>> {
        let places = Places::FOUND?;
        if !are_available() {
            return None;
        }
        let mut points = Vec::with_capacity(encodings.len());
        for chunk in encodings.chunks(LANES) {
            if chunk.len() < WORTH {
                points.extend(chunk.iter().map(decompress));
            } else {
                // SAFETY: the processor has what it needs, as was asked above.
                unsafe { decompress_chunk(chunk, places, &mut points) };
            }
        }
        Some(points)
    }

    #[target_feature(enable = "avx512f,avx512ifma")]
    fn decompress_chunk(encodings: &[[u8; 32]], places: Places, points: &mut Vec<Option<EdwardsPoint>>) {
        let mut rows = [[0; LANES]; 5];
        let mut signs = 0;
        for (lane, encoding) in encodings.iter().enumerate() {
            for (row, limb) in rows.iter_mut().zip(limbs(encoding)) {
                row[lane] = limb;
            }
            signs |= (encoding[31] >> 7) << lane;
        }
        let y = Field::load(&rows);
        let (root, exists) = root(&y);
        let negative = Field::splat([0; 5]).subtract(&root).reduced();
        let x = root.replaced(signs ^ root.odds(), &negative);
        let product = x.multiply(&y).reduced().store();
        let (x, y) = (x.store(), y.store());
        for (lane, encoding) in encodings.iter().enumerate() {
            let of = |rows: &[[u64; LANES]; 5]| rows.map(|row| row[lane]);
            let good = exists >> lane & 1 == 1 && is_canonical(encoding);
            points.push(good.then(|| places.point([of(&x), of(&y), ONE, of(&product)])));
        }
    }

    /// x of y, reduced, of either sign, and in which lanes there is one: x² = (y² - 1) / (d·y² + 1).
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn root(y: &Field) -> (Field, u8) {
        let one = Field::splat(ONE);
        let y_squared = y.square();
        let u = y_squared.subtract(&one);
        let v = y_squared.multiply(&Field::splat(D)).add(&one);
        let v3 = v.square().multiply(&v);
        let v7 = v3.square().multiply(&v);
        // As RFC 8032 section 5.1.3: u·v³·(u·v⁷)^((p-5)/8) is the root, or the root divided by that of -1, or there is none.
        let root = u.multiply(&v3).multiply(&raised(&u.multiply(&v7)));
        let check = root.square().multiply(&v);
        let straight = check.subtract(&u).zeros();
        let turned = check.add(&u).zeros();
        let other = root.multiply(&Field::splat(ROOT_OF_MINUS_ONE));
        (root.replaced(turned & !straight, &other).reduced(), straight | turned)
    }

    /// To the power of (p - 5) / 8 = 2^252 - 3.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn raised(a: &Field) -> Field {
        // Named by the exponent's ones: `ones_5` is a to the power of 2^5 - 1.
        let ones_2 = squared(a, 1).multiply(a);
        let ones_4 = squared(&ones_2, 2).multiply(&ones_2);
        let ones_5 = squared(&ones_4, 1).multiply(a);
        let ones_10 = squared(&ones_5, 5).multiply(&ones_5);
        let ones_20 = squared(&ones_10, 10).multiply(&ones_10);
        let ones_40 = squared(&ones_20, 20).multiply(&ones_20);
        let ones_50 = squared(&ones_40, 10).multiply(&ones_10);
        let ones_100 = squared(&ones_50, 50).multiply(&ones_50);
        let ones_200 = squared(&ones_100, 100).multiply(&ones_100);
        let all_ones = squared(&ones_200, 50).multiply(&ones_50);
        squared(&all_ones, 2).multiply(a)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn squared(a: &Field, times: usize) -> Field {
        let mut now = *a;
        for _ in 0..times {
            now = now.square();
        }
        now
    }

    const LIMB_MASK: u64 = (1 << 51) - 1;

    /// The lower 255 bits.
    fn limbs(encoding: &[u8; 32]) -> Limbs {
        let (words, _) = encoding.as_chunks::<8>();
        let word = |at: usize| u64::from_le_bytes(words[at]);
        [
            word(0) & LIMB_MASK,
            (word(0) >> 51 | word(1) << 13) & LIMB_MASK,
            (word(1) >> 38 | word(2) << 26) & LIMB_MASK,
            (word(2) >> 25 | word(3) << 39) & LIMB_MASK,
            word(3) >> 12 & LIMB_MASK,
        ]
    }
}
