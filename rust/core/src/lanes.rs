//! Arithmetic modulo 2^255 - 19 on eight numbers at once, with AVX-512's 52-bit multiply-add.
//!
//! A number is five limbs of 51 bits. Between operations a limb is below 2^51 + 2^15, so that the instructions, which multiply 52 bits,
//! see all of it, and sums of products stay below 2^64. Nothing here is secret: there is no promise of constant time.

use std::arch::x86_64::{
    __m512i, __mmask8, _mm512_add_epi64, _mm512_and_si512, _mm512_madd52hi_epu64, _mm512_madd52lo_epu64,
    _mm512_mask_mov_epi64, _mm512_or_si512, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_shuffle_i64x2,
    _mm512_slli_epi64, _mm512_srli_epi64, _mm512_sub_epi64, _mm512_test_epi64_mask, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi64,
};

/// Numbers at once.
pub(crate) const LANES: usize = 8;

/// Limbs of a number, least significant first.
pub(crate) type Limbs = [u64; 5];

const LIMB_BITS: u32 = 51;
const LIMB_MASK: u64 = (1 << LIMB_BITS) - 1;
/// Twice the prime: limb by limb more than what is subtracted.
const TWICE_PRIME: Limbs = [2 * (LIMB_MASK - 18), 2 * LIMB_MASK, 2 * LIMB_MASK, 2 * LIMB_MASK, 2 * LIMB_MASK];

/// Whether this processor has what the functions of this module need.
pub(crate) fn are_available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512ifma")
}

/// Eight numbers, one a lane.
#[derive(Clone, Copy)]
pub(crate) struct Field(pub(crate) [__m512i; 5]);

impl Field {
    /// One number a lane; `rows[limb][lane]` is below 2^51.
    #[inline]
    pub(crate) fn load(rows: &[[u64; LANES]; 5]) -> Self {
        // SAFETY: both are 320 bytes of plain integers.
        Self(unsafe { std::mem::transmute::<[[u64; LANES]; 5], [__m512i; 5]>(*rows) })
    }

    /// What `load` takes.
    #[inline]
    pub(crate) fn store(&self) -> [[u64; LANES]; 5] {
        // SAFETY: both are 320 bytes of plain integers.
        unsafe { std::mem::transmute::<[__m512i; 5], [[u64; LANES]; 5]>(self.0) }
    }

    /// The same number in every lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn splat(limbs: Limbs) -> Self {
        let mut all = [_mm512_setzero_si512(); 5];
        for (all, limb) in all.iter_mut().zip(limbs) {
            *all = same(limb);
        }
        Self(all)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(crate) fn add(&self, other: &Self) -> Self {
        let mut sums = self.0;
        for (sum, limb) in sums.iter_mut().zip(other.0) {
            *sum = _mm512_add_epi64(*sum, limb);
        }
        carry(&sums)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(crate) fn subtract(&self, other: &Self) -> Self {
        let mut differences = self.0;
        for ((difference, limb), twice) in differences.iter_mut().zip(other.0).zip(TWICE_PRIME) {
            *difference = _mm512_sub_epi64(_mm512_add_epi64(*difference, same(twice)), limb);
        }
        carry(&differences)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(crate) fn multiply(&self, other: &Self) -> Self {
        let mut low = [_mm512_setzero_si512(); 10];
        let mut high = low;
        for (i, a) in self.0.into_iter().enumerate() {
            for (j, b) in other.0.into_iter().enumerate() {
                low[i + j] = _mm512_madd52lo_epu64(low[i + j], a, b);
                high[i + j + 1] = _mm512_madd52hi_epu64(high[i + j + 1], a, b);
            }
        }
        for (low, high) in low.iter_mut().zip(high) {
            // The upper half of a product counts in units of 2^52: two of the next limb.
            *low = _mm512_add_epi64(*low, _mm512_add_epi64(high, high));
        }
        fold(&low)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(crate) fn square(&self) -> Self {
        let mut low = [_mm512_setzero_si512(); 10];
        let mut high = low;
        for i in 0..5 {
            for j in i + 1..5 {
                low[i + j] = _mm512_madd52lo_epu64(low[i + j], self.0[i], self.0[j]);
                high[i + j + 1] = _mm512_madd52hi_epu64(high[i + j + 1], self.0[i], self.0[j]);
            }
        }
        for high in &mut high {
            *high = _mm512_add_epi64(*high, *high);
        }
        for (i, limb) in self.0.into_iter().enumerate() {
            high[2 * i + 1] = _mm512_madd52hi_epu64(high[2 * i + 1], limb, limb);
        }
        for (low, high) in low.iter_mut().zip(high) {
            let sum = _mm512_add_epi64(*low, high);
            *low = _mm512_add_epi64(sum, sum);
        }
        for (i, limb) in self.0.into_iter().enumerate() {
            low[2 * i] = _mm512_madd52lo_epu64(low[2 * i], limb, limb);
        }
        fold(&low)
    }

    /// The numbers themselves: below the prime, limbs below 2^51.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(crate) fn reduced(&self) -> Self {
        // Carried, a number is below twice the prime; adding 19 tells by its top whether it is above the prime.
        let mut limbs = carry(&self.0).0;
        let mut over = same(19);
        for limb in limbs {
            over = _mm512_srli_epi64::<LIMB_BITS>(_mm512_add_epi64(limb, over));
        }
        let mut carried = _mm512_madd52lo_epu64(_mm512_setzero_si512(), over, same(19));
        for limb in &mut limbs {
            let sum = _mm512_add_epi64(*limb, carried);
            *limb = _mm512_and_si512(sum, same(LIMB_MASK));
            carried = _mm512_srli_epi64::<LIMB_BITS>(sum);
        }
        Self(limbs)
    }

    /// Which lanes are zero modulo the prime.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(crate) fn zeros(&self) -> __mmask8 {
        let mut any = _mm512_setzero_si512();
        for limb in self.reduced().0 {
            any = _mm512_or_si512(any, limb);
        }
        !_mm512_test_epi64_mask(any, any)
    }

    /// Which lanes are odd; only of what is `reduced`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(crate) fn odds(&self) -> __mmask8 {
        _mm512_test_epi64_mask(self.0[0], same(1))
    }

    /// `other` in the lanes of the mask.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(crate) fn replaced(&self, mask: __mmask8, other: &Self) -> Self {
        let mut limbs = self.0;
        for (limb, other) in limbs.iter_mut().zip(other.0) {
            *limb = _mm512_mask_mov_epi64(*limb, mask, other);
        }
        Self(limbs)
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn same(number: u64) -> __m512i {
    _mm512_set1_epi64(number.cast_signed())
}

/// Ten columns to five limbs: 2^255 is 19. A column is below 2^55, what is carried below 2^60.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn fold(columns: &[__m512i; 10]) -> Field {
    let mut limbs = [_mm512_setzero_si512(); 5];
    for (at, limb) in limbs.iter_mut().enumerate() {
        let upper = columns[at + 5];
        let nineteen =
            _mm512_add_epi64(_mm512_add_epi64(_mm512_slli_epi64::<4>(upper), _mm512_slli_epi64::<1>(upper)), upper);
        *limb = _mm512_add_epi64(columns[at], nineteen);
    }
    carry(&limbs)
}

/// Each limb's excess to the next, at once: from below 2^60 to below 2^51 + 2^14.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn carry(limbs: &[__m512i; 5]) -> Field {
    let mut carried = *limbs;
    for (at, limb) in carried.iter_mut().enumerate() {
        *limb = _mm512_and_si512(limbs[at], same(LIMB_MASK));
        let before = _mm512_srli_epi64::<LIMB_BITS>(limbs[(at + 4) % 5]);
        *limb = if at == 0 { _mm512_madd52lo_epu64(*limb, before, same(19)) } else { _mm512_add_epi64(*limb, before) };
    }
    Field(carried)
}

/// Rows and columns of words exchanged.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn transposed(rows: &[__m512i; LANES]) -> [__m512i; LANES] {
    /// Of four pairs of words, from both: the first and third, the second and fourth.
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let mut columns = *rows;
    for parity in 0..2 {
        let mut pairs = [rows[0]; 4];
        for (at, pair) in pairs.iter_mut().enumerate() {
            let (upper, lower) = (rows[2 * at], rows[2 * at + 1]);
            *pair = if parity == 0 { _mm512_unpacklo_epi64(upper, lower) } else { _mm512_unpackhi_epi64(upper, lower) };
        }
        let upper = _mm512_shuffle_i64x2::<EVEN>(pairs[0], pairs[1]);
        let lower = _mm512_shuffle_i64x2::<EVEN>(pairs[2], pairs[3]);
        columns[parity] = _mm512_shuffle_i64x2::<EVEN>(upper, lower);
        columns[parity + 4] = _mm512_shuffle_i64x2::<ODD>(upper, lower);
        let upper = _mm512_shuffle_i64x2::<ODD>(pairs[0], pairs[1]);
        let lower = _mm512_shuffle_i64x2::<ODD>(pairs[2], pairs[3]);
        columns[parity + 2] = _mm512_shuffle_i64x2::<EVEN>(upper, lower);
        columns[parity + 6] = _mm512_shuffle_i64x2::<ODD>(upper, lower);
    }
    columns
}
