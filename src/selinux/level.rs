//! Levels that keep pods apart: each has two categories of its own, and no other pod has the same two.
//!
//! A process may do with a file what its type may, if it has all of the file's categories. So a pod reaches
//! what has its own two categories or none, and nothing of another pod.

use std::collections::HashSet;
use std::fmt;

/// Categories that policies have, as the peers assume, too.
const CATEGORIES: u16 = 1024;
/// Pairs of different ones.
const PAIRS: u32 = CATEGORIES as u32 * (CATEGORIES as u32 - 1) / 2;

/// Two categories, the lower one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pair(u16, u16);

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{},c{}", self.0, self.1)
    }
}

impl Pair {
    /// The categories of a level, if it has two, however they are written: "s0:c2,c1", "s0:c1.c2".
    pub fn of(level: &str) -> Option<Self> {
        let (_, categories) = level.rsplit('-').next()?.split_once(':')?;
        let (a, b) = categories.split_once([',', '.'])?;
        let number = |category: &str| category.strip_prefix('c')?.parse().ok();
        let (a, b): (u16, u16) = (number(a)?, number(b)?);
        let is_pair = match categories.contains('.') {
            true => a.checked_add(1) == Some(b),
            false => a != b,
        };
        is_pair.then(|| Self(a.min(b), a.max(b)))
    }

    /// One that is not `taken`, at random. `None` if all are.
    pub fn free(taken: &HashSet<Self>) -> Option<Self> {
        Self::free_from(rand::random_range(0..PAIRS), taken)
    }

    fn free_from(start: u32, taken: &HashSet<Self>) -> Option<Self> {
        (0..PAIRS)
            .map(|step| Self::numbered((start + step) % PAIRS))
            .find(|pair| !taken.contains(pair))
    }

    /// Pairs in order: c0,c1; c0,c2; … c1022,c1023.
    fn numbered(mut number: u32) -> Self {
        let mut low = 0;
        let mut row = u32::from(CATEGORIES) - 1;
        while number >= row {
            number -= row;
            row -= 1;
            low += 1;
        }
        // It is below the number of categories.
        let above = u16::try_from(number).unwrap_or(u16::MAX);
        Self(low, low + 1 + above)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_pairs() {
        let at = |number| Pair::numbered(number).to_string();
        assert_eq!(at(0), "c0,c1");
        assert_eq!(at(1022), "c0,c1023");
        assert_eq!(at(1023), "c1,c2");
        assert_eq!(at(PAIRS - 1), "c1022,c1023");
        let all: HashSet<_> = (0..PAIRS).map(Pair::numbered).collect();
        assert_eq!(all.len(), 523_776);
        assert!(all.iter().all(|Pair(low, high)| low < high && *high < 1024));
        assert_eq!(Pair::free_from(7, &all), None);
    }

    #[test]
    fn a_free_one_is_found() {
        let taken: HashSet<_> = (0..PAIRS)
            .filter(|n| *n != 4711)
            .map(Pair::numbered)
            .collect();
        assert_eq!(Pair::free(&taken), Some(Pair::numbered(4711)));
        let some: HashSet<_> = [PAIRS - 1, 0].map(Pair::numbered).into();
        assert_eq!(
            Pair::free_from(PAIRS - 1, &some),
            Some(Pair::numbered(1)),
            "the first follows the last"
        );
        let mut chosen = HashSet::new();
        for _ in 0..1000 {
            assert!(chosen.insert(Pair::free(&chosen).unwrap()));
        }
    }

    #[test]
    fn levels_of_requests_are_recognized() {
        let pair = Some(Pair(1, 2));
        for level in ["s0:c1,c2", "s0:c2,c1", "s0:c1.c2", "s0-s0:c1,c2"] {
            assert_eq!(Pair::of(level), pair, "{level}");
        }
        for level in [
            "s0",
            "s0:c1",
            "s0:c1,c1",
            "s0:c1.c3",
            "s0:c1,c2,c3",
            "s0:c1,c2.c4",
            "s0:x,y",
            "",
        ] {
            assert_eq!(Pair::of(level), None, "{level}");
        }
        assert_eq!(Pair::of(&format!("s0:{}", Pair(7, 9))), Some(Pair(7, 9)));
    }
}
