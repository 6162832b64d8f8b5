//! Output cut into the lines of a CRI log.
//!
//! A line is `TIME STREAM TAG TEXT`. The tag is F if the text ends a line and P if more of the same line
//! follows: so are lines over [`MAX_LINE`] split. A read that ends within a line is no reason to split
//! it: its rest is held until the newline comes, the limit is reached or the stream ends.

/// The longest text of one log line, in bytes.
pub const MAX_LINE: usize = 16 * 1024;

/// Bytes before the text of a log line.
pub const PREFIX: usize = crate::clock::LENGTH + 1 + 6 + 1 + 1 + 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// The text ends its line.
    Full,
    /// More of the line follows; at the end of a stream: its last line had no newline.
    Partial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamName {
    Stdout,
    Stderr,
}

/// Takes framed lines: the text is `head` and then `tail`.
pub trait LineSink {
    fn line(&mut self, tag: Tag, head: &[u8], tail: &[u8]);
}

/// The beginning of a line whose end has not come yet.
#[derive(Debug)]
pub struct Held {
    length: u16,
}

impl Held {
    #[must_use]
    pub const fn new() -> Self {
        Self { length: 0 }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.length)
    }

    /// Frames `input`, of which any part may end within a line. `buffer` keeps what is held and must be
    /// the same in every call.
    pub fn feed(&mut self, buffer: &mut [u8; MAX_LINE], input: &[u8], sink: &mut impl LineSink) {
        let mut rest = input;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            let text = self.split_long(buffer, line, sink);
            sink.line(Tag::Full, &buffer[..self.len()], text);
            self.length = 0;
        }
        let text = self.split_long(buffer, rest, sink);
        let length = self.len();
        buffer[length..length + text.len()].copy_from_slice(text);
        self.length += text.len() as u16;
    }

    /// Passes on what exceeds the limit and returns the rest, which fits behind what is still held.
    fn split_long<'t>(
        &mut self,
        buffer: &[u8; MAX_LINE],
        mut text: &'t [u8],
        sink: &mut impl LineSink,
    ) -> &'t [u8] {
        while let Some((first, more)) = text.split_at_checked(MAX_LINE - self.len())
            && !more.is_empty()
        {
            sink.line(Tag::Partial, &buffer[..self.len()], first);
            self.length = 0;
            text = more;
        }
        text
    }

    /// The stream has ended: passes on what is held.
    pub fn finish(&mut self, buffer: &[u8; MAX_LINE], sink: &mut impl LineSink) {
        if !self.is_empty() {
            sink.line(Tag::Partial, &buffer[..self.len()], b"");
            self.length = 0;
        }
    }
}

impl Default for Held {
    fn default() -> Self {
        Self::new()
    }
}

/// The bytes before a line's text.
#[must_use]
pub fn prefix(time: &[u8; crate::clock::LENGTH], stream: StreamName) -> [u8; PREFIX] {
    let mut bytes = *b"                               stdout F ";
    bytes[..time.len()].copy_from_slice(time);
    if stream == StreamName::Stderr {
        bytes[31..37].copy_from_slice(b"stderr");
    }
    bytes
}

/// Where the tag stands in a prefix.
pub const TAG_AT: usize = PREFIX - 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Lines(Vec<(Tag, Vec<u8>)>);

    impl LineSink for Lines {
        fn line(&mut self, tag: Tag, head: &[u8], tail: &[u8]) {
            self.0.push((tag, [head, tail].concat()));
        }
    }

    fn frame(reads: &[&[u8]]) -> Vec<(Tag, Vec<u8>)> {
        let mut buffer = Box::new([0; MAX_LINE]);
        let (mut held, mut lines) = (Held::new(), Lines::default());
        for read in reads {
            held.feed(&mut buffer, read, &mut lines);
        }
        held.finish(&buffer, &mut lines);
        lines.0
    }

    /// What should come out, however the bytes were read.
    fn model(output: &[u8]) -> Vec<(Tag, Vec<u8>)> {
        let mut lines = Vec::new();
        for line in output.split_inclusive(|byte| *byte == b'\n') {
            let (text, last) = match line.strip_suffix(b"\n") {
                Some(text) => (text, Tag::Full),
                None => (line, Tag::Partial),
            };
            let mut pieces: Vec<_> = text
                .chunks(MAX_LINE)
                .map(|piece| (Tag::Partial, piece.to_vec()))
                .collect();
            if pieces.is_empty() {
                pieces.push((last, Vec::new()));
            }
            pieces.last_mut().unwrap().0 = last;
            lines.append(&mut pieces);
        }
        lines
    }

    #[test]
    fn lines_survive_reads_that_end_within_them() {
        let lines = frame(&[b"one\ntw", b"", b"o\n", b"\nthree"]);
        let expected: [(Tag, &[u8]); 4] = [
            (Tag::Full, b"one"),
            (Tag::Full, b"two"),
            (Tag::Full, b""),
            (Tag::Partial, b"three"),
        ];
        assert_eq!(lines, expected.map(|(tag, text)| (tag, text.to_vec())));
    }

    #[test]
    fn a_line_is_split_only_if_it_is_longer_than_the_limit() {
        for length in [
            MAX_LINE - 1,
            MAX_LINE,
            MAX_LINE + 1,
            2 * MAX_LINE,
            2 * MAX_LINE + 1,
        ] {
            let mut output = vec![b'x'; length];
            output.push(b'\n');
            assert_eq!(frame(&[&output]), model(&output), "{length}");
            output.pop();
            assert_eq!(
                frame(&[&output]),
                model(&output),
                "{length} without newline"
            );
        }
    }

    #[test]
    fn a_prefix_is_as_the_cri_says() {
        let mut bytes = prefix(b"2026-11-22T18:41:03.123456789Z", StreamName::Stderr);
        assert_eq!(&bytes, b"2026-11-22T18:41:03.123456789Z stderr F ");
        bytes[TAG_AT] = b'P';
        assert!(bytes.ends_with(b" P "));
    }

    /// Pieces of output: mostly short lines, some around the limit.
    fn output() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![0..200_usize, MAX_LINE - 2..MAX_LINE + 3, 0..3 * MAX_LINE];
        let piece = (length, any::<u8>(), any::<bool>()).prop_map(|(length, byte, newline)| {
            let mut piece = vec![if byte == b'\n' { b'x' } else { byte }; length];
            piece.extend(newline.then_some(b'\n'));
            piece
        });
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn framing_does_not_depend_on_how_the_output_was_read(
            output in output(),
            cuts in prop::collection::vec(1..40_000_usize, 1..20),
        ) {
            let (mut reads, mut rest) = (Vec::new(), output.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (read, more) = rest.split_at((*cut).min(rest.len()));
                reads.push(read);
                rest = more;
            }
            prop_assert_eq!(frame(&reads), model(&output));
        }
    }
}
