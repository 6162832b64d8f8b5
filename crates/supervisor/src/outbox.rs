//! What the daemon is still to be told, in order, while its socket takes no more.
//!
//! Requests are read only when this is empty, so it never holds more than one answer and, for each
//! process in the table, that it started and that it exited.

use carpel_wire::{Family, Reply};

use crate::slot::Slot;
use crate::table::{Key, MAX_PROCESSES};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    Reply {
        seq: u32,
        reply: Reply,
    },
    Ready {
        seq: u32,
    },
    Started {
        seq: u32,
        key: Key,
    },
    Exited {
        key: Key,
    },
    /// The table from index `next` on, then that this was all.
    List {
        seq: u32,
        next: usize,
    },
    /// A socket, made when it can be sent.
    Socket {
        seq: u32,
        family: Family,
    },
}

const CAPACITY: usize = 2 * MAX_PROCESSES + 2;

pub struct Outbox {
    items: [Slot<Item>; CAPACITY],
    first: usize,
    count: usize,
}

impl Outbox {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            items: [const { Slot::Empty }; CAPACITY],
            first: 0,
            count: 0,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Puts an item last. Whether there was room.
    #[must_use]
    pub fn push(&mut self, item: Item) -> bool {
        if self.count == CAPACITY {
            return false;
        }
        self.items[(self.first + self.count) % CAPACITY] = Slot::Full(item);
        self.count += 1;
        true
    }

    #[must_use]
    pub fn first(&self) -> Option<Item> {
        self.items[self.first].get().copied()
    }

    /// Changes the first item, when part of it has been said.
    pub fn replace_first(&mut self, item: Item) {
        if let Some(first) = self.items[self.first].get_mut() {
            *first = item;
        }
    }

    pub fn pop(&mut self) -> Option<Item> {
        let item = self.items[self.first].take()?;
        self.first = (self.first + 1) % CAPACITY;
        self.count -= 1;
        if self.count == 0 {
            self.first = 0;
        }
        Some(item)
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn items_leave_in_the_order_they_came(steps in prop::collection::vec(0..5_u8, 0..2000)) {
            let (mut outbox, mut model) = (Outbox::new(), VecDeque::new());
            for (seq, step) in (0..).zip(steps) {
                if step > 1 {
                    let pushed = outbox.push(Item::Ready { seq });
                    prop_assert_eq!(pushed, model.len() < CAPACITY);
                    if pushed {
                        model.push_back(Item::Ready { seq });
                    }
                } else {
                    prop_assert_eq!(outbox.first(), model.front().copied());
                    prop_assert_eq!(outbox.pop(), model.pop_front());
                }
                prop_assert_eq!(outbox.is_empty(), model.is_empty());
            }
        }
    }
}
