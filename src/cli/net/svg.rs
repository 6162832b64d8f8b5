//! The drawing as a picture, in the manner of the timelines'.

use std::fmt::Write;

use super::diagram::{Card, Diagram, Row, Section, Tone, wrap};
use crate::cli::svg::{escape, head};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
const ROW: f64 = 18.0;
/// Inside of a card, above and below its rows.
const PAD: f64 = 10.0;
/// Columns of labels.
const LABELS: f64 = 110.0;
/// Between two cards, for the wire.
const WIRE: f64 = 34.0;
/// Characters that fit into a row.
const CHARACTERS: usize = 118;

fn colour(tone: Tone) -> Option<&'static str> {
    match tone {
        Tone::Plain | Tone::Faint => None,
        Tone::Good => Some("#2d9d78"),
        Tone::Note | Tone::Maybe => Some("#c9822b"),
        Tone::Stop => Some("#c94040"),
    }
}

/// Draws.
pub fn draw(diagram: &Diagram) -> String {
    let mut body = String::new();
    let mut drawing = Drawing {
        svg: &mut body,
        top: MARGIN,
    };
    drawing.heading(&diagram.title, &diagram.detail, 15);
    for section in &diagram.sections {
        drawing.section(section);
    }
    for remark in &diagram.remarks {
        drawing.row(&Row::new("", remark, Tone::Note), MARGIN, MARGIN);
    }
    let height = (drawing.top + MARGIN).ceil();
    format!("{}{body}</svg>\n", head(WIDTH, height))
}

struct Drawing<'a> {
    svg: &'a mut String,
    top: f64,
}

impl Drawing<'_> {
    /// Writing to a string does not fail.
    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.svg.write_fmt(text);
    }

    fn heading(&mut self, title: &str, detail: &str, size: u32) {
        let y = self.top + 14.0;
        self.write(format_args!(
            "<text class=\"ink\" x=\"{MARGIN}\" y=\"{y}\" font-size=\"{size}\" font-weight=\"600\">{} \
             <tspan class=\"faint\" font-weight=\"400\">{}</tspan></text>\n",
            escape(title),
            escape(detail)
        ));
        self.top += ROW + PAD;
    }

    fn section(&mut self, section: &Section) {
        if !section.heading.is_empty() {
            self.heading(&section.heading, "", 13);
        }
        for card in &section.cards {
            self.card(card);
        }
        for row in &section.end {
            self.row(row, MARGIN, MARGIN);
        }
        self.top += PAD;
    }

    fn card(&mut self, card: &Card) {
        let lines: usize = card
            .rows
            .iter()
            .map(|row| wrap(&row.text, CHARACTERS).len())
            .sum();
        let height = PAD * 2.0 + ROW * (1.0 + lines as f64);
        let (top, width) = (self.top, WIDTH - MARGIN * 2.0);
        self.write(format_args!(
            "<rect class=\"line\" x=\"{MARGIN}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"6\" \
             fill=\"none\" stroke-width=\"1.5\"/>\n"
        ));
        self.top += PAD;
        let (x, y) = (MARGIN + PAD, self.top + 12.0);
        self.write(format_args!(
            "<text class=\"ink\" x=\"{x}\" y=\"{y}\" font-weight=\"600\">{} \
             <tspan class=\"faint\" font-weight=\"400\">{}</tspan></text>\n",
            escape(&card.title),
            escape(&card.detail)
        ));
        self.top += ROW;
        for row in &card.rows {
            self.row(row, x, x + LABELS);
        }
        self.top = top + height;
        if let Some(wire) = &card.wire {
            let (x, from, to) = (MARGIN + 40.0, self.top, self.top + WIRE);
            let words = from + WIRE / 2.0 + 4.0;
            self.write(format_args!(
                "<line class=\"line\" x1=\"{x}\" y1=\"{from}\" x2=\"{x}\" y2=\"{to}\" stroke-width=\"1.5\"/>\
                 <text class=\"faint\" x=\"{}\" y=\"{words}\">{}</text>\n",
                x + 8.0,
                escape(wire)
            ));
            self.top += WIRE;
        } else {
            self.top += PAD;
        }
    }

    /// A row, with its label at one place and its text at another.
    fn row(&mut self, row: &Row, label_x: f64, text_x: f64) {
        for (n, line) in wrap(&row.text, CHARACTERS).iter().enumerate() {
            let y = self.top + 12.0;
            if n == 0 && !row.label.is_empty() {
                self.write(format_args!(
                    "<text class=\"faint\" x=\"{label_x}\" y=\"{y}\">{}</text>",
                    escape(&row.label)
                ));
            }
            let (class, fill) = match colour(row.tone) {
                Some(colour) => ("", format!(" fill=\"{colour}\"")),
                None if row.tone == Tone::Faint => ("faint", String::new()),
                None => ("ink", String::new()),
            };
            self.write(format_args!(
                "<text class=\"{class}\" x=\"{text_x}\" y=\"{y}\"{fill}>{}</text>\n",
                escape(line)
            ));
            self.top += ROW;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::diagram::tests::sample;
    use super::*;

    #[test]
    fn everything_is_drawn_inside_the_picture() {
        let svg = draw(&sample());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(
            svg.contains("may be &lt;dropped&gt; &amp; &quot;lost&quot;"),
            "{svg}"
        );
        assert!(svg.contains("dropped?[2J by a rule"), "{svg}");
        assert_eq!(svg.matches("rx=\"6\"").count(), 2);
        let height: f64 = svg
            .split("height=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        for part in svg.split(" y=\"").skip(1) {
            let y: f64 = part.split('"').next().unwrap().parse().unwrap();
            assert!(y < height, "{y} of {height}");
        }
        for (open, close) in [
            ("<text", "</text>"),
            ("<tspan", "</tspan>"),
            ("<svg", "</svg>"),
        ] {
            assert_eq!(
                svg.matches(open).count(),
                svg.matches(close).count(),
                "{open}"
            );
        }
    }
}
