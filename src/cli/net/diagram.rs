//! What is drawn, whatever it is drawn as: cards with rows, one below the other, with wires between.

/// How something is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    /// It is there, and need not be looked at.
    Faint,
    Good,
    /// Worth a look.
    Note,
    /// It depends.
    Maybe,
    /// Here it ends.
    Stop,
}

/// A line of a card, with what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Empty for one that goes on with what the last was about.
    pub label: String,
    pub text: String,
    pub tone: Tone,
}

impl Row {
    pub fn new(label: impl Into<String>, text: impl Into<String>, tone: Tone) -> Self {
        Self {
            label: label.into(),
            text: text.into(),
            tone,
        }
    }
}

/// A place, or what happens there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    pub title: String,
    pub detail: String,
    pub rows: Vec<Row>,
    /// What leads to the next card.
    pub wire: Option<String>,
}

/// Cards in the order in which a packet passes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    /// Empty if there is only one.
    pub heading: String,
    pub cards: Vec<Card>,
    /// How it ends.
    pub end: Vec<Row>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagram {
    pub title: String,
    pub detail: String,
    pub sections: Vec<Section>,
    /// What must be known to read it.
    pub remarks: Vec<String>,
}

/// Text in lines of at most `width` columns, broken between words where that is possible.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let room = if line.is_empty() { 0 } else { line.width() + 1 };
        if room > 0 && room + word.width() > width {
            lines.push(std::mem::take(&mut line));
        } else if room > 0 {
            line.push(' ');
        }
        for c in word.chars() {
            // A word that is longer than a line.
            if line.width() + c.width().unwrap_or(0) > width {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Something with everything in it.
    pub fn sample() -> Diagram {
        let card = |title: &str, wire: Option<&str>| Card {
            title: title.into(),
            detail: "10.0.0.2".into(),
            rows: vec![
                Row::new("eth0", "veth, up", Tone::Plain),
                Row::new(
                    "",
                    "a text that is so long that it does not fit into one line of a terminal, however wide that may be, and goes on",
                    Tone::Faint,
                ),
                Row::new("rules", "may be <dropped> & \"lost\"", Tone::Maybe),
            ],
            wire: wire.map(str::to_owned),
        };
        Diagram {
            title: "default/web".into(),
            detail: "0123456789ab".into(),
            sections: vec![Section {
                heading: "there".into(),
                cards: vec![card("default/web", Some("veth pair")), card("node", None)],
                end: vec![Row::new("", "dropped\x1b[2J by a rule", Tone::Stop)],
            }],
            remarks: vec!["there are more rules than can be read".into()],
        }
    }

    #[test]
    fn lines_break_between_words_and_long_words_anywhere() {
        assert_eq!(wrap("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(wrap("日本語 x", 4), ["日本", "語 x"]);
    }
}
