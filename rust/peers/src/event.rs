//! What is published: the same bytes for every peer, made so that whoever receives them can tell what they are.

use anyhow::{Context, Result, ensure};

use crate::arguments::PAYLOAD_BYTES_MIN;

const DIGITS: usize = PAYLOAD_BYTES_MIN / 2;

/// Payloads of printable bytes, because half of the peers carry JSON: whose event, which one, then random filling.
pub(crate) struct Payloads {
    filling: Vec<u8>,
}

/// Whose event it is and which one: connection and index, both from 0 on.
pub(crate) type Which = (usize, usize);

impl Payloads {
    /// `bytes` is the length of each, at least `PAYLOAD_BYTES_MIN`.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let mut filling = vec![0; bytes - PAYLOAD_BYTES_MIN];
        getrandom::fill(&mut filling)?;
        for byte in &mut filling {
            *byte = b"0123456789abcdef"[usize::from(*byte & 15)];
        }
        Ok(Self { filling })
    }

    /// Appends one.
    pub(crate) fn write(&self, output: &mut Vec<u8>, (connection, index): Which) {
        for number in [connection, index] {
            for place in (0..DIGITS).rev() {
                output.push(b"0123456789abcdef"[number >> (4 * place) & 15]);
            }
        }
        output.extend_from_slice(&self.filling);
    }

    /// Which one this is; an error where a byte of it is not as published.
    pub(crate) fn read(&self, payload: &[u8]) -> Result<Which> {
        let (head, filling) = payload.split_at_checked(PAYLOAD_BYTES_MIN).context("an event that is too short")?;
        ensure!(filling == self.filling, "an event arrived changed");
        Ok((number(&head[..DIGITS])?, number(&head[DIGITS..])?))
    }
}

fn number(digits: &[u8]) -> Result<usize> {
    usize::from_str_radix(std::str::from_utf8(digits)?, 16).context("an event without its number")
}

/// Which events of one author arrived: every one should, once, and in order.
#[derive(Default)]
pub(crate) struct Arrived {
    next: usize,
    bits: Vec<u64>,
    pub(crate) count: u64,
    pub(crate) duplicates: u64,
    pub(crate) out_of_order: u64,
}

impl Arrived {
    /// Notes an arrival; whether it is the first of that event.
    pub(crate) fn note(&mut self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit != 0 {
            self.duplicates += 1;
            return false;
        }
        self.bits[word] |= bit;
        self.count += 1;
        self.out_of_order += u64::from(index < self.next);
        self.next = self.next.max(index + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_says_which_it_is_and_shows_every_change() -> Result<()> {
        let payloads = Payloads::new(256)?;
        let mut written = Vec::new();
        payloads.write(&mut written, (98, 0x12_3456));
        assert_eq!((written.len(), payloads.read(&written)?), (256, (98, 0x12_3456)));
        for at in PAYLOAD_BYTES_MIN..written.len() {
            let mut changed = written.clone();
            changed[at] ^= 1;
            assert!(payloads.read(&changed).is_err(), "byte {at}");
        }
        assert!(payloads.read(&written[..10]).is_err());
        Ok(())
    }

    #[test]
    fn what_arrives_twice_or_late_is_counted() {
        let mut arrived = Arrived::default();
        let first: Vec<bool> = [0, 1, 70, 2, 70].map(|index| arrived.note(index)).into();
        assert_eq!(first, [true, true, true, true, false]);
        assert_eq!((arrived.count, arrived.duplicates, arrived.out_of_order), (4, 1, 1));
    }
}
