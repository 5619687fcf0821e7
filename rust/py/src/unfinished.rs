//! What all sockets hold of messages that are not whole yet, and whose turn it is to go where that is too much.

use std::collections::BTreeMap;

/// One socket's part in it: nothing unless a message has begun.
#[derive(Default)]
pub(crate) struct Part {
    bytes: usize,
    /// Where it is in the order in which messages began.
    age: u64,
}

/// The parts of all sockets, those that began first in front.
pub(crate) struct Unfinished {
    bytes_max: usize,
    bytes: usize,
    last_age: u64,
    tokens: BTreeMap<u64, u64>,
}

impl Unfinished {
    pub(crate) const fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, last_age: 0, tokens: BTreeMap::new() }
    }

    /// A socket holds so many bytes now; `anew`: of another message than before.
    pub(crate) fn note(&mut self, token: u64, part: &mut Part, bytes: usize, anew: bool) {
        if part.bytes == 0 && bytes == 0 {
            return;
        }
        if part.bytes == 0 || bytes == 0 || anew {
            self.tokens.remove(&part.age);
            if bytes > 0 {
                self.last_age += 1;
                part.age = self.last_age;
                self.tokens.insert(part.age, token);
            }
        }
        self.bytes = self.bytes - part.bytes + bytes;
        part.bytes = bytes;
    }

    /// Whose message began first, where all hold more than they may.
    pub(crate) fn surplus(&self) -> Option<u64> {
        if self.bytes <= self.bytes_max { None } else { self.tokens.first_key_value().map(|(_, &token)| token) }
    }
}
