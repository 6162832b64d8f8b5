//! A table of text: a header, columns that line up, and on a terminal no line longer than it is wide.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::output::{Colour, Screen, printable};

/// Blanks between two columns.
const GAP: usize = 3;
/// A column is not made narrower than this, whatever the terminal's width.
const NARROWEST: usize = 8;

/// A column: its title and how it behaves.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    title: &'static str,
    right: bool,
    shrinks: bool,
}

/// A column as wide as its widest cell.
pub const fn column(title: &'static str) -> Column {
    Column {
        title,
        right: false,
        shrinks: false,
    }
}

/// A column of numbers.
pub const fn number(title: &'static str) -> Column {
    Column {
        title,
        right: true,
        shrinks: false,
    }
}

/// A column whose cells are cut (with "…") where the line would not fit the terminal.
pub const fn flexible(title: &'static str) -> Column {
    Column {
        title,
        right: false,
        shrinks: true,
    }
}

/// A cell's text and perhaps its colour.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    pub fn coloured(text: impl Into<String>, colour: Colour) -> Self {
        Self {
            text: text.into(),
            colour: Some(colour),
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            colour: None,
        }
    }
}

/// Rows below their columns.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Cells beyond the columns are left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells = cells.into_iter().map(|cell| Cell {
            text: match cell.text.as_str() {
                "" => "-".to_owned(),
                text => printable(text),
            },
            ..cell
        });
        self.rows.push(cells.take(self.columns.len()).collect());
    }

    /// The table as lines.
    pub fn render(&self, screen: &Screen) -> String {
        let widths = self.widths(screen.width);
        let titles = self.columns.iter().map(|column| Cell {
            text: column.title.to_owned(),
            colour: Some(Colour::Bold),
        });
        let mut text = self.line(&titles.collect::<Vec<_>>(), &widths, screen);
        for row in &self.rows {
            text.push_str(&self.line(row, &widths, screen));
        }
        text
    }

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|c| c.title.width()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.text.width().max(*width);
            }
        }
        let Some(limit) = limit else {
            return widths;
        };
        let gaps = GAP * widths.len().saturating_sub(1);
        // The widest flexible column gives way first, so that the short ones stay readable.
        while widths.iter().sum::<usize>() + gaps > limit {
            let flexible = self.columns.iter().zip(&mut widths);
            let widest = flexible
                .filter(|(column, width)| {
                    column.shrinks && **width > NARROWEST.max(column.title.width())
                })
                .map(|(_, width)| width)
                .max();
            match widest {
                Some(width) => *width -= 1,
                None => break,
            }
        }
        widths
    }

    fn line(&self, cells: &[Cell], widths: &[usize], screen: &Screen) -> String {
        let mut line = String::new();
        let last = cells.len().saturating_sub(1);
        for (n, ((column, cell), width)) in self.columns.iter().zip(cells).zip(widths).enumerate() {
            let text = cut(&cell.text, *width);
            let blanks = " ".repeat(width.saturating_sub(text.width()));
            let painted = screen.paint(cell.colour, &text);
            match (column.right, n == last) {
                (true, _) => line.extend([blanks.as_str(), &painted]),
                // Nothing follows: no blanks at the end of a line.
                (false, true) => line.push_str(&painted),
                (false, false) => line.extend([painted.as_str(), &blanks]),
            }
            if n != last {
                line.push_str(&" ".repeat(GAP));
            }
        }
        line.push('\n');
        line
    }
}

/// `text` in at most `width` columns.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        short.push(c);
    }
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Screen = Screen {
        width: None,
        colour: false,
    };

    fn table() -> Table {
        let mut table = Table::new([
            column("ID"),
            flexible("IMAGE"),
            number("SIZE"),
            flexible("POD"),
        ]);
        table.row([
            "ab".into(),
            "localhost/busybox:latest".into(),
            "1.5 MiB".into(),
            "web".into(),
        ]);
        table.row([
            "abcd".into(),
            "".into(),
            "3 B".into(),
            "a-long-name-of-a-pod".into(),
        ]);
        table
    }

    #[test]
    fn columns_line_up_and_nothing_is_cut_without_a_terminal() {
        assert_eq!(
            table().render(&PLAIN),
            "ID     IMAGE                         SIZE   POD\n\
             ab     localhost/busybox:latest   1.5 MiB   web\n\
             abcd   -                              3 B   a-long-name-of-a-pod\n"
        );
    }

    #[test]
    fn flexible_columns_shrink_to_the_terminal() {
        for width in [40, 45, 50, 63, 64, 65, 100] {
            let screen = Screen {
                width: Some(width),
                colour: false,
            };
            let text = table().render(&screen);
            for line in text.lines() {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
            assert_eq!(text.contains('…'), width < 64, "{width}\n{text}");
        }
        // Too narrow for anything: readable beats fitting.
        let screen = Screen {
            width: Some(10),
            colour: false,
        };
        assert!(table().render(&screen).contains("localho…"));
    }

    #[test]
    fn colour_takes_no_room() {
        let mut table = Table::new([column("STATE"), column("X")]);
        table.row([Cell::coloured("Running", Colour::Green), "1".into()]);
        let screen = Screen {
            width: None,
            colour: true,
        };
        assert_eq!(
            table.render(&screen),
            "\x1b[1mSTATE\x1b[0m     \x1b[1mX\x1b[0m\n\x1b[32mRunning\x1b[0m   1\n"
        );
    }

    #[test]
    fn wide_and_evil_characters_do_no_harm() {
        let mut table = Table::new([flexible("NAME"), column("X")]);
        table.row(["日本語の名前です".into(), "1".into()]);
        table.row(["a\x1b[2Jb\tc".into(), "2".into()]);
        let screen = Screen {
            width: Some(14),
            colour: false,
        };
        let text = table.render(&screen);
        assert_eq!(text, "NAME         X\n日本語の…    1\na?[2Jb?c     2\n");
        assert_eq!(cut("abc", 0), "…");
    }
}
