//! The log ring: the newest entries of one sequence, bounded in bytes.
//!
//! An entry stands for `count` consecutive sequence numbers (the agent keeps encoded batches of lines in it, so that
//! taking in a line costs no allocation of its own). The ring never holds more than its budget, never reorders and
//! never closes a hole silently: what is asked for and is no longer there is answered as a [`Lost`].

use std::collections::VecDeque;

/// One entry: `count` sequence numbers from `first` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// Its first sequence number.
    pub first: u64,
    /// How many sequence numbers it stands for; 0 is a remark between two.
    pub count: u32,
    /// What it counts against the budget, in bytes.
    pub cost: usize,
    /// The content.
    pub value: T,
}

impl<T> Entry<T> {
    /// The sequence number after its last one.
    pub fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// Sequence numbers that were asked for and are not there: `from` up to, not including, `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The first missing one.
    pub from: u64,
    /// The first one that is there again.
    pub to: u64,
}

impl Lost {
    /// How many are missing.
    pub fn count(self) -> u64 {
        self.to - self.from
    }
}

/// What is missing for a reader that wants `want` next where the oldest kept one is `oldest`.
pub fn lost(want: u64, oldest: u64) -> Option<Lost> {
    (want < oldest).then_some(Lost { from: want, to: oldest })
}

/// An entry that would step back in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("entry begins at {first}, but {next} is next")]
pub struct OutOfOrder {
    /// Where the entry begins.
    pub first: u64,
    /// What the ring expected at least.
    pub next: u64,
}

/// The newest entries of a sequence, at most `budget` bytes of them.
#[derive(Debug, Clone)]
pub struct Ring<T> {
    budget: usize,
    used: usize,
    next: u64,
    entries: VecDeque<Entry<T>>,
}

impl<T> Ring<T> {
    /// An empty ring whose first entry begins at `next` or later.
    pub fn new(budget: usize, next: u64) -> Self {
        Self { budget, used: 0, next, entries: VecDeque::new() }
    }

    /// Adds an entry and drops as many of the oldest as the budget asks for. An entry that is larger than the whole
    /// budget empties the ring and is not kept. A hole before the entry is allowed and drops what was before it:
    /// what the ring holds is always one run without holes.
    pub fn push(&mut self, entry: Entry<T>) -> Result<(), OutOfOrder> {
        if entry.first < self.next {
            return Err(OutOfOrder { first: entry.first, next: self.next });
        }
        if entry.first > self.next {
            self.entries.clear();
            self.used = 0;
        }
        self.next = entry.next();
        if entry.cost > self.budget {
            self.entries.clear();
            self.used = 0;
            return Ok(());
        }
        self.used += entry.cost;
        self.entries.push_back(entry);
        self.trim();
        Ok(())
    }

    /// Changes the budget at once.
    pub fn set_budget(&mut self, budget: usize) {
        self.budget = budget;
        self.trim();
    }

    fn trim(&mut self) {
        while self.used > self.budget {
            match self.entries.pop_front() {
                Some(old) => self.used -= old.cost,
                None => self.used = 0,
            }
        }
    }

    /// Bytes it may hold.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes it holds.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The sequence number that the next entry gets, at least.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The oldest sequence number it holds; [`Ring::next`] when it holds none.
    pub fn first(&self) -> u64 {
        self.entries.front().map_or(self.next, |e| e.first)
    }

    /// The entries from the one that contains `seq` on, oldest first; `None` when `seq` is older than all of them.
    pub fn from(&self, seq: u64) -> Option<impl Iterator<Item = &Entry<T>>> {
        if seq < self.first() {
            return None;
        }
        let at = self.entries.partition_point(|e| e.next() <= seq);
        Some(self.entries.range(at..))
    }

    /// All entries, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry<T>> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(first: u64, count: u32, cost: usize) -> Entry<u64> {
        Entry { first, count, cost, value: first }
    }

    #[test]
    fn keeps_the_newest_and_knows_what_is_lost() {
        let mut ring = Ring::new(10, 1);
        for first in [1, 3, 5] {
            ring.push(entry(first, 2, 4)).unwrap();
        }
        assert_eq!((ring.first(), ring.next(), ring.used()), (3, 7, 8));
        assert!(ring.from(2).is_none());
        assert_eq!(ring.from(4).unwrap().map(|e| e.first).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(ring.from(7).unwrap().count(), 0);
        assert_eq!(lost(1, ring.first()).unwrap().count(), 2);
        assert_eq!(lost(3, ring.first()), None);
    }

    #[test]
    fn an_entry_beyond_the_budget_is_not_kept() {
        let mut ring = Ring::new(10, 1);
        ring.push(entry(1, 1, 5)).unwrap();
        ring.push(entry(2, 9, 11)).unwrap();
        assert_eq!((ring.first(), ring.next(), ring.used()), (11, 11, 0));
        assert_eq!(ring.push(entry(10, 1, 1)), Err(OutOfOrder { first: 10, next: 11 }));
    }

    #[test]
    fn a_hole_drops_what_was_before_it() {
        let mut ring = Ring::new(10, 1);
        ring.push(entry(1, 1, 1)).unwrap();
        ring.push(entry(5, 1, 1)).unwrap();
        assert_eq!(ring.first(), 5);
        assert!(ring.from(1).is_none());
    }

    proptest! {
        /// Never above budget, never reordered, one run without holes, and never emptier than it has to be.
        #[test]
        fn holds_its_promises(
            budget in 0usize..200,
            pushes in prop::collection::vec((0u64..3, 0u32..4, 0usize..60, prop::option::of(0usize..200)), 0..60),
        ) {
            let mut ring = Ring::new(budget, 1);
            let mut next = 1;
            for (hole, count, cost, new_budget) in pushes {
                let hole = if hole == 2 { 1 } else { 0 };
                ring.push(entry(next + hole, count, cost)).unwrap();
                next += hole + u64::from(count);
                if let Some(budget) = new_budget {
                    ring.set_budget(budget);
                }
                prop_assert!(ring.used() <= ring.budget());
                prop_assert_eq!(ring.used(), ring.iter().map(|e| e.cost).sum::<usize>());
                prop_assert_eq!(ring.next(), next);
                let mut at = ring.first();
                for e in ring.iter() {
                    prop_assert_eq!(e.first, at);
                    at = e.next();
                }
                prop_assert!(at == next || ring.iter().next().is_none());
            }
        }
    }
}
