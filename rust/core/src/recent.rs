//! A bounded map that forgets what was used longest ago.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Entries with when they were used last.
pub struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    /// Keys by their last use.
    uses: BTreeMap<u64, K>,
    uses_count: u64,
    entries_max: usize,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    /// An empty one for `entries_max`.
    pub fn new(entries_max: usize) -> Self {
        Self { entries: HashMap::new(), uses: BTreeMap::new(), uses_count: 0, entries_max }
    }

    /// The value, which is the one used last from now on.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        let (used, value) = self.entries.get_mut(key)?;
        let key = self.uses.remove(used)?;
        self.uses_count += 1;
        *used = self.uses_count;
        self.uses.insert(*used, key);
        Some(value)
    }

    /// Whether it is there; that is no use.
    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Remembers a value, which is the one used last; the one used longest ago goes where there is no room.
    pub fn insert(&mut self, key: K, value: V) {
        self.remove(&key);
        self.uses_count += 1;
        self.uses.insert(self.uses_count, key.clone());
        self.entries.insert(key, (self.uses_count, value));
        while self.entries.len() > self.entries_max {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            self.entries.remove(&oldest);
        }
    }

    /// Forgets a key, where it is there.
    pub fn remove(&mut self, key: &K) {
        if let Some((used, _)) = self.entries.remove(key) {
            self.uses.remove(&used);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.uses.clear();
    }
}
