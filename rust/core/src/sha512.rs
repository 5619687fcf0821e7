//! SHA-512 (FIPS 180-4) of many messages at once.
//!
//! A signature's challenge is one hash of some hundred bytes, whose 80 rounds a block follow from one another. So eight messages go in
//! lockstep where the processor computes with eight 64-bit words at once (docs/adr/0330), also of different lengths. The result is the
//! very one of the `sha2` crate, which does it where no processor helps.

use sha2::{Digest as _, Sha512};

/// Bytes of a hash.
pub const SHA512_BYTES: usize = 64;

/// The hash of each message; a message is the concatenation of its parts.
pub fn sha512_many<const PARTS: usize>(messages: &[[&[u8]; PARTS]]) -> Vec<[u8; SHA512_BYTES]> {
    #[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
    if lockstep::is_available() {
        return lockstep::sha512_many(messages);
    }
    sha512_each(messages)
}

/// What `sha512_many` does where no processor helps.
pub fn sha512_each<const PARTS: usize>(messages: &[[&[u8]; PARTS]]) -> Vec<[u8; SHA512_BYTES]> {
    messages.iter().map(|message| sha512(message.iter().copied())).collect()
}

/// The hash of one message, alone.
pub(crate) fn sha512<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; SHA512_BYTES] {
    let mut hash = Sha512::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
#[allow(unsafe_code)]
mod lockstep {
    use std::arch::x86_64::{
        __m512i, _mm512_add_epi64, _mm512_loadu_si512, _mm512_mask_add_epi64, _mm512_ror_epi64, _mm512_set1_epi64,
        _mm512_set4_epi32, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_srli_epi64, _mm512_ternarylogic_epi64,
    };

    use super::{SHA512_BYTES, sha512};
    use crate::lanes::{LANES, transposed};

    /// From this many messages on, one round of `LANES` is cheaper than one after the other.
    const WORTH: usize = 3;
    /// Longer messages, which signatures of events do not have, are hashed alone: what lanes hold is bounded.
    const BLOCKS_MAX: usize = 64;

    const BLOCK_BYTES: usize = 128;
    const WORDS: usize = 16;
    /// After the message: one byte that ends it, and its length.
    const PADDING_BYTES_MIN: usize = 1 + 16;

    const INITIAL: [u64; 8] = [
        0x6a09_e667_f3bc_c908,
        0xbb67_ae85_84ca_a73b,
        0x3c6e_f372_fe94_f82b,
        0xa54f_f53a_5f1d_36f1,
        0x510e_527f_ade6_82d1,
        0x9b05_688c_2b3e_6c1f,
        0x1f83_d9ab_fb41_bd6b,
        0x5be0_cd19_137e_2179,
    ];
    const ROUND_CONSTANTS: [u64; 80] = [
        0x428a_2f98_d728_ae22,
        0x7137_4491_23ef_65cd,
        0xb5c0_fbcf_ec4d_3b2f,
        0xe9b5_dba5_8189_dbbc,
        0x3956_c25b_f348_b538,
        0x59f1_11f1_b605_d019,
        0x923f_82a4_af19_4f9b,
        0xab1c_5ed5_da6d_8118,
        0xd807_aa98_a303_0242,
        0x1283_5b01_4570_6fbe,
        0x2431_85be_4ee4_b28c,
        0x550c_7dc3_d5ff_b4e2,
        0x72be_5d74_f27b_896f,
        0x80de_b1fe_3b16_96b1,
        0x9bdc_06a7_25c7_1235,
        0xc19b_f174_cf69_2694,
        0xe49b_69c1_9ef1_4ad2,
        0xefbe_4786_384f_25e3,
        0x0fc1_9dc6_8b8c_d5b5,
        0x240c_a1cc_77ac_9c65,
        0x2de9_2c6f_592b_0275,
        0x4a74_84aa_6ea6_e483,
        0x5cb0_a9dc_bd41_fbd4,
        0x76f9_88da_8311_53b5,
        0x983e_5152_ee66_dfab,
        0xa831_c66d_2db4_3210,
        0xb003_27c8_98fb_213f,
        0xbf59_7fc7_beef_0ee4,
        0xc6e0_0bf3_3da8_8fc2,
        0xd5a7_9147_930a_a725,
        0x06ca_6351_e003_826f,
        0x1429_2967_0a0e_6e70,
        0x27b7_0a85_46d2_2ffc,
        0x2e1b_2138_5c26_c926,
        0x4d2c_6dfc_5ac4_2aed,
        0x5338_0d13_9d95_b3df,
        0x650a_7354_8baf_63de,
        0x766a_0abb_3c77_b2a8,
        0x81c2_c92e_47ed_aee6,
        0x9272_2c85_1482_353b,
        0xa2bf_e8a1_4cf1_0364,
        0xa81a_664b_bc42_3001,
        0xc24b_8b70_d0f8_9791,
        0xc76c_51a3_0654_be30,
        0xd192_e819_d6ef_5218,
        0xd699_0624_5565_a910,
        0xf40e_3585_5771_202a,
        0x106a_a070_32bb_d1b8,
        0x19a4_c116_b8d2_d0c8,
        0x1e37_6c08_5141_ab53,
        0x2748_774c_df8e_eb99,
        0x34b0_bcb5_e19b_48a8,
        0x391c_0cb3_c5c9_5a63,
        0x4ed8_aa4a_e341_8acb,
        0x5b9c_ca4f_7763_e373,
        0x682e_6ff3_d6b2_b8a3,
        0x748f_82ee_5def_b2fc,
        0x78a5_636f_4317_2f60,
        0x84c8_7814_a1f0_ab72,
        0x8cc7_0208_1a64_39ec,
        0x90be_fffa_2363_1e28,
        0xa450_6ceb_de82_bde9,
        0xbef9_a3f7_b2c6_7915,
        0xc671_78f2_e372_532b,
        0xca27_3ece_ea26_619c,
        0xd186_b8c7_21c0_c207,
        0xeada_7dd6_cde0_eb1e,
        0xf57d_4f7f_ee6e_d178,
        0x06f0_67aa_7217_6fba,
        0x0a63_7dc5_a2c8_98a6,
        0x113f_9804_bef9_0dae,
        0x1b71_0b35_131c_471b,
        0x28db_77f5_2304_7d84,
        0x32ca_ab7b_40c7_2493,
        0x3c9e_be0a_15c9_bebc,
        0x431d_67c4_9c10_0d4c,
        0x4cc5_d4be_cb3e_42b6,
        0x597f_299c_fc65_7e2a,
        0x5fcb_6fab_3ad6_faec,
        0x6c44_198c_4a47_5817,
    ];

    /// Truth tables of three inputs, for `_mm512_ternarylogic_epi64`.
    const XOR: i32 = 0x96;
    const CHOICE: i32 = 0xca;
    const MAJORITY: i32 = 0xe8;

    pub(super) fn is_available() -> bool {
        std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bw")
    }

    /// Only where it `is_available`.
    pub(super) fn sha512_many<const PARTS: usize>(messages: &[[&[u8]; PARTS]]) -> Vec<[u8; SHA512_BYTES]> {
        let blocks: Vec<usize> = messages.iter().map(blocks).collect();
        let mut order: Vec<usize> = (0..messages.len()).collect();
        // Lanes whose messages have equally many blocks do no idle rounds.
        order.sort_by_key(|&index| blocks[index]);
        let mut hashes = vec![[0; SHA512_BYTES]; messages.len()];
        let mut padded = Vec::new();
        for group in order.chunks(LANES) {
            let longest = group.last().map_or(0, |&index| blocks[index]);
            if group.len() < WORTH || longest > BLOCKS_MAX {
                for &index in group {
                    hashes[index] = sha512(messages[index].iter().copied());
                }
                continue;
            }
            let bytes = longest * BLOCK_BYTES;
            padded.clear();
            padded.resize(LANES * bytes, 0);
            let mut counts = [0; LANES];
            for ((lane, &index), count) in padded.chunks_exact_mut(bytes).zip(group).zip(&mut counts) {
                *count = blocks[index];
                pad(&messages[index], &mut lane[..*count * BLOCK_BYTES]);
            }
            // SAFETY: the processor has what it needs, as the caller asked.
            let found = unsafe { hash_lanes(&padded, &counts) };
            for (&index, hash) in group.iter().zip(found) {
                hashes[index] = hash;
            }
        }
        hashes
    }

    fn blocks<const PARTS: usize>(message: &[&[u8]; PARTS]) -> usize {
        let bytes: usize = message.iter().map(|part| part.len()).sum();
        (bytes + PADDING_BYTES_MIN).div_ceil(BLOCK_BYTES)
    }

    /// FIPS 180-4 section 5.1.2; `lane` is zeros and exactly as long as the message and its padding.
    fn pad<const PARTS: usize>(message: &[&[u8]; PARTS], lane: &mut [u8]) {
        let mut at = 0;
        for part in message {
            lane[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        lane[at] = 0x80;
        let bits = at as u64 * 8;
        let end = lane.len();
        lane[end - 8..].copy_from_slice(&bits.to_be_bytes());
    }

    /// `padded`: the lanes one after the other, equally long; of lane `l` the first `counts[l]` blocks are hashed.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn hash_lanes(padded: &[u8], counts: &[usize; LANES]) -> [[u8; SHA512_BYTES]; LANES] {
        let lane_bytes = padded.len() / LANES;
        let mut state = INITIAL.map(|word| _mm512_set1_epi64(word.cast_signed()));
        for block in 0..lane_bytes / BLOCK_BYTES {
            let mut words = [_mm512_setzero_si512(); WORDS];
            for (half, words) in words.chunks_exact_mut(LANES).enumerate() {
                let mut rows = [_mm512_setzero_si512(); LANES];
                for (lane, row) in rows.iter_mut().enumerate() {
                    let from = lane * lane_bytes + block * BLOCK_BYTES + half * 64;
                    *row = big_endian(&padded[from..from + 64]);
                }
                words.copy_from_slice(&transposed(&rows));
            }
            let compressed = compress(&state, &mut words);
            let mut going_on = 0;
            for (lane, &count) in counts.iter().enumerate() {
                going_on |= u8::from(block < count) << lane;
            }
            for (state, compressed) in state.iter_mut().zip(compressed) {
                *state = _mm512_mask_add_epi64(*state, going_on, *state, compressed);
            }
        }
        let mut hashes = [[0; SHA512_BYTES]; LANES];
        for (hash, lane) in hashes.iter_mut().zip(transposed(&state)) {
            // SAFETY: both are 64 bytes of plain integers.
            let words = unsafe { std::mem::transmute::<__m512i, [u64; 8]>(lane) };
            for (bytes, word) in hash.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *bytes = word.to_be_bytes();
            }
        }
        hashes
    }

    /// Eight words that follow one another. `bytes` are 64.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn big_endian(bytes: &[u8]) -> __m512i {
        let reversed = _mm512_set4_epi32(0x0809_0a0b, 0x0c0d_0e0f, 0x0001_0203, 0x0405_0607);
        assert_eq!(bytes.len(), 64);
        // SAFETY: as many bytes are there; an unaligned load asks no more.
        let words = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        _mm512_shuffle_epi8(words, reversed)
    }

    /// FIPS 180-4 section 6.4.2, without the last addition. `words` are used up.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn compress(state: &[__m512i; 8], words: &mut [__m512i; WORDS]) -> [__m512i; 8] {
        let mut working = *state;
        for (pass, constants) in ROUND_CONSTANTS.as_chunks::<WORDS>().0.iter().enumerate() {
            if pass > 0 {
                for at in 0..WORDS {
                    words[at] = _mm512_add_epi64(
                        _mm512_add_epi64(words[at], words[(at + 9) % WORDS]),
                        _mm512_add_epi64(schedule_0(words[(at + 1) % WORDS]), schedule_1(words[(at + 14) % WORDS])),
                    );
                }
            }
            for (constants, words) in constants.as_chunks::<8>().0.iter().zip(words.as_chunks::<8>().0) {
                round::<0>(&mut working, constants, words);
                round::<1>(&mut working, constants, words);
                round::<2>(&mut working, constants, words);
                round::<3>(&mut working, constants, words);
                round::<4>(&mut working, constants, words);
                round::<5>(&mut working, constants, words);
                round::<6>(&mut working, constants, words);
                round::<7>(&mut working, constants, words);
            }
        }
        working
    }

    /// Round `AT` of eight, after which every variable is at its place again: instead of moving on, they are renamed.
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[allow(clippy::many_single_char_names)] // they are FIPS 180-4's
    fn round<const AT: usize>(working: &mut [__m512i; 8], constants: &[u64; 8], words: &[__m512i; 8]) {
        let [a, b, c, d, e, f, g, h] = [0, 1, 2, 3, 4, 5, 6, 7].map(|variable| (variable + 8 - AT) % 8);
        let constant = _mm512_set1_epi64(constants[AT].cast_signed());
        let chosen = _mm512_ternarylogic_epi64::<CHOICE>(working[e], working[f], working[g]);
        let first = _mm512_add_epi64(
            _mm512_add_epi64(_mm512_add_epi64(working[h], constant), words[AT]),
            _mm512_add_epi64(sum_1(working[e]), chosen),
        );
        let majority = _mm512_ternarylogic_epi64::<MAJORITY>(working[a], working[b], working[c]);
        let second = _mm512_add_epi64(sum_0(working[a]), majority);
        working[d] = _mm512_add_epi64(working[d], first);
        working[h] = _mm512_add_epi64(first, second);
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn sum_0(x: __m512i) -> __m512i {
        xor(_mm512_ror_epi64::<28>(x), _mm512_ror_epi64::<34>(x), _mm512_ror_epi64::<39>(x))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn sum_1(x: __m512i) -> __m512i {
        xor(_mm512_ror_epi64::<14>(x), _mm512_ror_epi64::<18>(x), _mm512_ror_epi64::<41>(x))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn schedule_0(x: __m512i) -> __m512i {
        xor(_mm512_ror_epi64::<1>(x), _mm512_ror_epi64::<8>(x), _mm512_srli_epi64::<7>(x))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn schedule_1(x: __m512i) -> __m512i {
        xor(_mm512_ror_epi64::<19>(x), _mm512_ror_epi64::<61>(x), _mm512_srli_epi64::<6>(x))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        _mm512_ternarylogic_epi64::<XOR>(a, b, c)
    }
}
