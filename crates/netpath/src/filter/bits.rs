//! Bytes of which some are not known: what a rule's registers hold when only a part of the packet is.

/// Bytes, and for each the bits of it that are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bits {
    value: Vec<u8>,
    known: Vec<u8>,
}

impl Bits {
    #[must_use]
    pub fn known(value: &[u8]) -> Self {
        Self {
            value: value.to_vec(),
            known: vec![0xff; value.len()],
        }
    }

    #[must_use]
    pub fn unknown(length: usize) -> Self {
        Self {
            value: vec![0; length],
            known: vec![0; length],
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.value.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.value.is_empty()
    }

    /// The bytes, if all of them are known.
    #[must_use]
    pub fn all(&self) -> Option<&[u8]> {
        let is_known = self.known.iter().all(|mask| *mask == 0xff);
        is_known.then_some(&self.value)
    }

    /// Sets some bytes.
    pub fn set(&mut self, at: usize, value: &[u8]) {
        self.set_masked(at, value, &vec![0xff; value.len()]);
    }

    /// Sets the bits of some bytes that a mask has.
    pub fn set_masked(&mut self, at: usize, value: &[u8], mask: &[u8]) {
        for (n, (value, mask)) in value.iter().zip(mask).enumerate() {
            if let (Some(own), Some(known)) =
                (self.value.get_mut(at + n), self.known.get_mut(at + n))
            {
                *own = *own & !mask | value & mask;
                *known |= mask;
            }
        }
    }

    /// A part; what is beyond the end is not known.
    #[must_use]
    pub fn part(&self, at: usize, length: usize) -> Self {
        let mut part = Self::unknown(length);
        for n in 0..length {
            if let (Some(value), Some(known)) = (self.value.get(at + n), self.known.get(at + n)) {
                part.value[n] = *value;
                part.known[n] = *known;
            }
        }
        part
    }

    /// Puts other bytes in the place of some.
    pub fn put(&mut self, at: usize, other: &Self) {
        for n in 0..other.len().min(self.len().saturating_sub(at)) {
            self.value[at + n] = other.value[n];
            self.known[at + n] = other.known[n];
        }
    }

    /// Masked, then flipped where `flip` has ones. What is masked away is known to be 0.
    #[must_use]
    pub fn bitwise(&self, mask: &[u8], flip: &[u8]) -> Self {
        let mut result = self.clone();
        for n in 0..self.len() {
            let mask = mask.get(n).copied().unwrap_or(0);
            let flip = flip.get(n).copied().unwrap_or(0);
            result.value[n] = (self.value[n] & mask) ^ flip;
            result.known[n] = self.known[n] | !mask;
        }
        result
    }

    /// With the bytes of each group of `size` turned round.
    #[must_use]
    pub fn swapped(&self, size: usize) -> Self {
        let mut result = self.clone();
        for bytes in [&mut result.value, &mut result.known] {
            bytes.chunks_mut(size.max(1)).for_each(<[u8]>::reverse);
        }
        result
    }

    /// Whether it is the value; `None`: that depends on what is not known.
    #[must_use]
    pub fn equals(&self, value: &[u8]) -> Option<bool> {
        let differs = (0..self.len())
            .any(|n| (self.value[n] ^ value.get(n).copied().unwrap_or(0)) & self.known[n] != 0);
        if differs {
            return Some(false);
        }
        self.all().map(|_| true)
    }

    /// Whether it is between two values, as big-endian numbers.
    #[must_use]
    pub fn is_between(&self, low: &[u8], high: &[u8]) -> Option<bool> {
        // The least and the most that it can be.
        let least: Vec<u8> = (0..self.len())
            .map(|n| self.value[n] & self.known[n])
            .collect();
        let most: Vec<u8> = (0..self.len())
            .map(|n| self.value[n] & self.known[n] | !self.known[n])
            .collect();
        if most.as_slice() < low || least.as_slice() > high {
            return Some(false);
        }
        if least.as_slice() >= low && most.as_slice() <= high {
            return Some(true);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_masked_away_is_known() {
        let address = Bits::unknown(4);
        assert_eq!(address.equals(&[10, 0, 0, 1]), None);
        assert_eq!(
            address.bitwise(&[0; 4], &[0; 4]).equals(&[0; 4]),
            Some(true)
        );
        let mut half = Bits::unknown(4);
        half.set(0, &[10, 1]);
        assert_eq!(half.equals(&[10, 2, 0, 0]), Some(false));
        assert_eq!(half.equals(&[10, 1, 0, 0]), None);
        assert_eq!(
            half.bitwise(&[255, 255, 0, 0], &[0; 4])
                .equals(&[10, 1, 0, 0]),
            Some(true)
        );
        assert_eq!(half.is_between(&[10, 0, 0, 0], &[10, 9, 0, 0]), Some(true));
        assert_eq!(half.is_between(&[10, 1, 0, 5], &[10, 9, 0, 0]), None);
        assert_eq!(half.is_between(&[10, 2, 0, 0], &[10, 9, 0, 0]), Some(false));
        assert_eq!(half.part(1, 2).swapped(2).part(1, 1), Bits::known(&[1]));
    }

    proptest! {
        #[test]
        fn an_answer_holds_whatever_the_unknown_bits_are(
            value: [u8; 4], known: [u8; 4], rest: [u8; 4], other: [u8; 4], mask: [u8; 4], flip: [u8; 4],
        ) {
            let mut bits = Bits::unknown(4);
            bits.set_masked(0, &value, &known);
            // One of the values that it may be.
            let real: Vec<u8> = (0..4).map(|n| value[n] & known[n] | rest[n] & !known[n]).collect();
            if let Some(answer) = bits.equals(&other) {
                prop_assert_eq!(answer, real == other);
            }
            if let Some(answer) = bits.is_between(&other, &mask) {
                prop_assert_eq!(answer, real.as_slice() >= &other[..] && real.as_slice() <= &mask[..]);
            }
            let result = Bits::known(&real).bitwise(&mask, &flip);
            let result = result.all().unwrap();
            prop_assert_ne!(bits.bitwise(&mask, &flip).equals(result), Some(false));
        }
    }
}
