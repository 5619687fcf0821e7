//! SHA-512 of many messages at once: the very hashes that they have one by one.

use keepstep_core::sha512::{sha512_each, sha512_many};
use proptest::prelude::*;

use crate::support::cases;

/// More than the longest message that lanes hash.
const LENGTH_MAX: usize = 10_000;

/// Bytes that differ from place to place.
fn message(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + seed * 7 + at / 251).to_le_bytes()[0]).collect()
}

fn check(messages: &[Vec<u8>]) {
    let whole: Vec<[&[u8]; 1]> = messages.iter().map(|message| [&message[..]]).collect();
    let cut: Vec<[&[u8]; 3]> = messages
        .iter()
        .map(|message| {
            let (left, right) = message.split_at(message.len() / 3);
            [left, &[], right]
        })
        .collect();
    let expected = sha512_each(&whole);
    assert_eq!(sha512_many(&whole), expected);
    assert_eq!(sha512_many(&cut), expected);
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn published_hashes_are_found_in_every_lane() {
    // FIPS 180-4's examples (NIST, "SHA512.pdf"): one block, two blocks; the empty message; a million times "a".
    let two_blocks = "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrs\
                      mnopqrstnopqrstu";
    let million = "a".repeat(1_000_000);
    let published = [
        (
            "abc",
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
        (
            two_blocks,
            "8e959b75dae313da8cf4f72814fc143f8f7779c6eb9f7fa17299aeadb6889018\
             501d289e4900f7e4331b99dec4b5433ac7d329eeb6dd26545e96e55b874be909",
        ),
        (
            "",
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
             47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
        ),
        (
            &million,
            "e718483d0ce769644e2e42c7bc15b4638e1f98b13b2044285632a803afa973eb\
             de0ff244877ea60a4cb0432ce577c31beb009c5c2c49aa2e4eadb217ad8cc09b",
        ),
    ];
    for rotation in 0..8 {
        let mut messages: Vec<[&[u8]; 1]> = Vec::new();
        let mut expected = Vec::new();
        for at in 0..8 {
            let (message, hash) = published[(at + rotation) % published.len()];
            messages.push([message.as_bytes()]);
            expected.push(hex(hash));
        }
        let found: Vec<_> = sha512_many(&messages).into_iter().map(|hash| hash.to_vec()).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn messages_of_every_length_around_the_ends_of_blocks_have_their_hashes() {
    let lengths: Vec<usize> = (0..=1100).chain(8_000..=8_400).collect();
    check(&lengths.iter().map(|&length| message(length, length)).collect::<Vec<_>>());
    for &length in &lengths {
        // Eight of one length, so that no other lane decides how many blocks there are.
        if length % 128 >= 108 || length % 128 <= 4 {
            check(&(0..8).map(|seed| message(length, seed)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn lanes_of_different_lengths_do_not_touch_one_another() {
    for longest in 0..8 {
        let mut messages: Vec<_> = (0..8).map(|seed| message(40 * seed, seed)).collect();
        messages[longest] = message(900, longest);
        check(&messages);
    }
}

#[test]
fn any_number_of_messages_has_as_many_hashes() {
    for count in 0..=25 {
        check(&(0..count).map(|seed| message(300 + seed, seed)).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn hashes_of_many_are_those_of_each(lengths in proptest::collection::vec(0..LENGTH_MAX, 0..40), seed in any::<u8>()) {
        check(&lengths.iter().map(|&length| message(length, usize::from(seed))).collect::<Vec<_>>());
    }
}
