//! The drawing as text: boxes of at most a hundred columns.

use unicode_width::UnicodeWidthStr;

use super::diagram::{Card, Diagram, Row, Section, Tone, wrap};
use crate::cli::output::{Colour, Screen, printable};

/// Columns without a terminal, and the most and the fewest on one.
const USUAL: usize = 100;
const FEWEST: usize = 60;
/// Where wires leave a box.
const WIRE: usize = 5;
/// The most columns of labels.
const LABELS: usize = 14;

/// Draws.
pub fn draw(diagram: &Diagram, screen: &Screen) -> String {
    let width = screen.width.unwrap_or(USUAL).clamp(FEWEST, USUAL);
    let drawing = Drawing { width, screen };
    let mut text = screen.paint(Some(Colour::Bold), &printable(&diagram.title));
    if !diagram.detail.is_empty() {
        text += &format!("  {}", printable(&diagram.detail));
    }
    text.push('\n');
    for section in &diagram.sections {
        text.push('\n');
        drawing.section(section, &mut text);
    }
    if !diagram.remarks.is_empty() {
        text.push('\n');
    }
    for remark in &diagram.remarks {
        drawing.paragraph("! ", &printable(remark), Tone::Note, &mut text);
    }
    text
}

struct Drawing<'a> {
    width: usize,
    screen: &'a Screen,
}

fn colour(tone: Tone) -> Option<Colour> {
    match tone {
        Tone::Plain | Tone::Faint => None,
        Tone::Good => Some(Colour::Green),
        Tone::Note | Tone::Maybe => Some(Colour::Yellow),
        Tone::Stop => Some(Colour::Red),
    }
}

/// What stands before a line of this tone, for those who see no colours.
fn sign(tone: Tone) -> &'static str {
    match tone {
        Tone::Plain | Tone::Faint => "",
        Tone::Good => "✓ ",
        Tone::Note => "! ",
        Tone::Maybe => "? ",
        Tone::Stop => "✗ ",
    }
}

impl Drawing<'_> {
    fn section(&self, section: &Section, text: &mut String) {
        if !section.heading.is_empty() {
            let heading = printable(&section.heading);
            *text += &format!("{}\n", self.screen.paint(Some(Colour::Bold), &heading));
        }
        let mut wired = false;
        for card in &section.cards {
            self.card(card, wired, text);
            wired = card.wire.is_some();
            if let Some(wire) = &card.wire {
                let label = printable(wire);
                *text += format!("{}│ {label}", " ".repeat(WIRE)).trim_end();
                text.push('\n');
            }
        }
        for row in &section.end {
            let sign = sign(row.tone);
            let indent = if sign.is_empty() { "  " } else { sign };
            self.paragraph(indent, &printable(&row.text), row.tone, text);
        }
    }

    /// Lines without a box, of which the first begins with `sign` and the others as far in.
    fn paragraph(&self, sign: &str, words: &str, tone: Tone, text: &mut String) {
        let lines = wrap(words, self.width - sign.width());
        for (n, line) in lines.iter().enumerate() {
            let before = if n == 0 {
                sign.to_owned()
            } else {
                " ".repeat(sign.width())
            };
            let line = self.screen.paint(colour(tone), &format!("{before}{line}"));
            *text += &format!("{line}\n");
        }
    }

    fn card(&self, card: &Card, wired: bool, text: &mut String) {
        self.top(card, wired, text);
        let labels = card.rows.iter().map(|row| printable(&row.label).width());
        let labels = labels.max().unwrap_or(0).min(LABELS);
        for row in &card.rows {
            self.row(row, labels, text);
        }
        let mut line: Vec<char> = std::iter::repeat_n('─', self.width - 2).collect();
        if card.wire.is_some() {
            line[WIRE - 1] = '┬';
        }
        *text += &format!("└{}┘\n", line.into_iter().collect::<String>());
    }

    fn top(&self, card: &Card, wired: bool, text: &mut String) {
        let begin = if wired {
            "┌────┴─ "
        } else {
            "┌─ "
        };
        // Two blanks and a corner, and a line between the two texts.
        let room = self.width.saturating_sub(begin.width() + 3);
        let title = cut(&printable(&card.title), room);
        let mut rest = room - title.width();
        let mut detail = String::new();
        if !card.detail.is_empty() && rest > 6 {
            detail = format!("─ {} ", cut(&printable(&card.detail), rest - 4));
            rest = rest.saturating_sub(detail.width());
        }
        let title = self.screen.paint(Some(Colour::Bold), &title);
        *text += &format!("{begin}{title} {detail}{}┐\n", "─".repeat(rest + 1));
    }

    fn row(&self, row: &Row, labels: usize, text: &mut String) {
        let sign = sign(row.tone);
        // Two corners with a blank each, the label and what is between it and the text.
        let gap = if labels == 0 { 0 } else { 2 };
        let room = self.width - 4 - labels - gap - sign.width();
        let label = cut(&printable(&row.label), labels);
        for (n, line) in wrap(&printable(&row.text), room).iter().enumerate() {
            let label = if n == 0 { label.as_str() } else { "" };
            let blanks = " ".repeat(labels - label.width() + gap);
            let label = self.screen.paint(Some(Colour::Cyan), label);
            let before = if n == 0 {
                sign.to_owned()
            } else {
                " ".repeat(sign.width())
            };
            let after = " ".repeat(room - line.width());
            let line = self
                .screen
                .paint(colour(row.tone), &format!("{before}{line}"));
            *text += &format!("│ {label}{blanks}{line}{after} │\n");
        }
    }
}

/// A text in at most `width` columns.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut lines = wrap(text, width.saturating_sub(1).max(1)).into_iter();
    format!("{}…", lines.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::diagram::tests::sample;
    use super::*;

    #[test]
    fn boxes_are_as_wide_as_the_screen_and_never_wider() {
        for (columns, expected) in [
            (None, 100),
            (Some(80), 80),
            (Some(300), 100),
            (Some(20), 60),
        ] {
            let screen = Screen {
                width: columns,
                colour: false,
            };
            let text = draw(&sample(), &screen);
            for line in text.lines() {
                assert!(line.width() <= expected, "{line}");
                if line.starts_with(['┌', '│', '└']) {
                    assert_eq!(line.width(), expected, "{line}");
                }
            }
            assert!(text.contains("✗ dropped?[2J by a rule\n"), "{text}");
            assert!(
                text.contains("\n     │ veth pair\n┌────┴─ node ─ 10.0.0.2 ─"),
                "{text}"
            );
            assert!(text.contains("! there are more rules"), "{text}");
        }
    }

    #[test]
    fn colour_takes_no_room() {
        let plain = Screen {
            width: Some(80),
            colour: false,
        };
        let coloured = Screen {
            colour: true,
            ..plain
        };
        let text = draw(&sample(), &coloured);
        assert!(text.contains("\x1b[33m"), "{text:?}");
        let mut stripped = String::new();
        let mut inside = false;
        for c in text.chars() {
            match c {
                '\x1b' => inside = true,
                'm' if inside => inside = false,
                c if !inside => stripped.push(c),
                _ => {}
            }
        }
        assert_eq!(stripped, draw(&sample(), &plain));
    }
}
