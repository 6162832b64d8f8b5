//! A place in a static table. An empty one is all zeros, unlike an `Option`, so that the table lies in
//! memory that costs nothing until it is used.

#[repr(u8)]
#[derive(Debug)]
pub enum Slot<T> {
    Empty = 0,
    Full(T) = 1,
}

impl<T> Slot<T> {
    pub fn get(&self) -> Option<&T> {
        match self {
            Slot::Full(value) => Some(value),
            Slot::Empty => None,
        }
    }

    pub fn get_mut(&mut self) -> Option<&mut T> {
        match self {
            Slot::Full(value) => Some(value),
            Slot::Empty => None,
        }
    }

    pub fn take(&mut self) -> Option<T> {
        match core::mem::replace(self, Slot::Empty) {
            Slot::Full(value) => Some(value),
            Slot::Empty => None,
        }
    }
}
