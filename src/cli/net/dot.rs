//! The drawing for Graphviz: `carpel net POD -o dot | dot -Tpng`.

use std::fmt::Write;

use super::diagram::{Diagram, Row, Section, Tone, wrap};

/// Characters of a line in a node.
const CHARACTERS: usize = 80;

fn colour(tone: Tone) -> &'static str {
    match tone {
        Tone::Plain | Tone::Faint => "black",
        Tone::Good => "darkgreen",
        Tone::Note | Tone::Maybe => "darkorange",
        Tone::Stop => "red",
    }
}

/// Draws.
pub fn draw(diagram: &Diagram) -> String {
    let mut dot = format!(
        "digraph net {{\n  label={}; labelloc=t; rankdir=TB;\n  node [shape=box, fontname=monospace, fontsize=10];\n",
        quoted(&format!("{} {}", diagram.title, diagram.detail))
    );
    for (n, section) in diagram.sections.iter().enumerate() {
        draw_section(&mut dot, n, section);
    }
    for (n, remark) in diagram.remarks.iter().enumerate() {
        let text = quoted(remark);
        // Writing to a string does not fail.
        let _ = writeln!(dot, "  remark{n} [shape=note, label={text}];");
    }
    dot.push_str("}\n");
    dot
}

fn draw_section(dot: &mut String, n: usize, section: &Section) {
    let _ = writeln!(
        dot,
        "  subgraph cluster{n} {{\n    label={};",
        quoted(&section.heading)
    );
    for (m, card) in section.cards.iter().enumerate() {
        let mut lines = format!("{} {}\\l", escaped(&card.title), escaped(&card.detail));
        for row in &card.rows {
            lines += &row_lines(row);
        }
        let _ = writeln!(dot, "    s{n}c{m} [label=\"{lines}\"];");
        if m + 1 < section.cards.len() {
            let wire = quoted(card.wire.as_deref().unwrap_or_default());
            let _ = writeln!(dot, "    s{n}c{m} -> s{n}c{} [label={wire}];", m + 1);
        }
    }
    if let Some(first) = section.end.first() {
        let lines: String = section.end.iter().map(row_lines).collect();
        let colour = colour(first.tone);
        let _ = writeln!(
            dot,
            "    s{n}end [label=\"{lines}\", color={colour}, fontcolor={colour}];"
        );
        if let Some(last) = section.cards.len().checked_sub(1) {
            let _ = writeln!(dot, "    s{n}c{last} -> s{n}end;");
        }
    }
    dot.push_str("  }\n");
}

/// A row's lines, each ended as Graphviz ends those that stand at the left.
fn row_lines(row: &Row) -> String {
    let text = match row.label.as_str() {
        "" => row.text.clone(),
        label => format!("{label}: {}", row.text),
    };
    let lines = wrap(&text, CHARACTERS);
    lines
        .iter()
        .map(|line| format!("{}\\l", escaped(line)))
        .collect()
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text.trim()))
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::diagram::tests::sample;
    use super::*;

    #[test]
    fn texts_are_quoted_and_cards_joined() {
        let dot = draw(&sample());
        assert!(dot.starts_with("digraph net {") && dot.ends_with("}\n"));
        assert!(dot.contains("s0c0 -> s0c1 [label=\"veth pair\"];"), "{dot}");
        assert!(dot.contains("s0c1 -> s0end;"), "{dot}");
        assert!(dot.contains("may be <dropped> & \\\"lost\\\"\\l"), "{dot}");
        assert!(dot.contains("color=red"), "{dot}");
        // Quotes that are not escaped come in pairs.
        let quotes = dot.replace("\\\"", "").matches('"').count();
        assert_eq!(quotes % 2, 0);
    }
}
