//! Numbers as text, without memory of their own.

/// A number in decimal.
#[derive(Debug, Clone, Copy)]
pub struct Decimal {
    /// The text stands at the end.
    text: [u8; 20],
    start: usize,
}

impl Decimal {
    #[must_use]
    pub fn new(number: i64) -> Self {
        let mut decimal = Self {
            text: [b'0'; 20],
            start: 20,
        };
        let mut rest = number.unsigned_abs();
        while rest > 0 || decimal.start == 20 {
            decimal.push((rest % 10) as u8 + b'0');
            rest /= 10;
        }
        if number < 0 {
            decimal.push(b'-');
        }
        decimal
    }

    fn push(&mut self, byte: u8) {
        self.start -= 1;
        self.text[self.start] = byte;
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.text[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_usual() {
        for number in [
            0,
            7,
            -1,
            -998,
            1000,
            i64::from(u32::MAX),
            i64::MAX,
            i64::MIN,
        ] {
            assert_eq!(Decimal::new(number).bytes(), number.to_string().as_bytes());
        }
    }
}
