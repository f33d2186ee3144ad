//! Plain tables for people: aligned columns that never pass [`WIDTH_MAX`], so that nothing wraps.

/// Widest line that is printed, in characters: fits a split terminal and a mail.
pub const WIDTH_MAX: usize = 100;

/// Narrowest a column is cut to before the next widest one is cut.
const COLUMN_MIN: usize = 6;

/// Space between two columns.
const GAP: usize = 2;

/// One column: its title and the side its cells stand on.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    is_right: bool,
}

/// A column of text.
pub const fn text(title: &'static str) -> Column {
    Column { title, is_right: false }
}

/// A column of numbers.
pub const fn number(title: &'static str) -> Column {
    Column { title, is_right: true }
}

/// Rows under a header.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    /// An empty table.
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new(), indent: 0 }
    }

    /// Every line starts with this many spaces.
    pub fn indented(mut self, indent: usize) -> Self {
        self.indent = indent;
        self
    }

    /// Adds a row; missing cells are empty, extra ones are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// Whether there is nothing under the header.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, one line per row, each line ending in a line feed.
    pub fn render(&self) -> String {
        let widths = self.widths();
        let header: Vec<String> = self.columns.iter().map(|column| column.title.to_owned()).collect();
        std::iter::once(&header).chain(&self.rows).map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let mut line = " ".repeat(self.indent);
        for ((cell, width), column) in row.iter().zip(widths).zip(&self.columns) {
            let cell = cut(cell, *width);
            let padding = " ".repeat(width - cell.chars().count());
            line += &if column.is_right { padding + &cell } else { cell + &padding };
            line += &" ".repeat(GAP);
        }
        format!("{}\n", line.trim_end())
    }

    /// Natural widths, the widest cut first until the line fits.
    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| column.title.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let room = WIDTH_MAX.saturating_sub(self.indent + GAP * widths.len().saturating_sub(1));
        // Ends: every pass takes at least one character off the widest column, or stops.
        loop {
            let excess = widths.iter().sum::<usize>().saturating_sub(room);
            let mut order: Vec<usize> = (0..widths.len()).collect();
            order.sort_by_key(|index| std::cmp::Reverse(widths[*index]));
            let Some(widest) = order.first().copied().filter(|index| excess > 0 && widths[*index] > COLUMN_MIN) else {
                return widths;
            };
            let second = order.get(1).map_or(COLUMN_MIN, |index| widths[*index]).max(COLUMN_MIN);
            let step = (widths[widest] - second).clamp(1, excess);
            widths[widest] -= step;
        }
    }
}

/// `text` in at most `width` characters: what is too much goes out of the middle, for the ends of paths tell most.
pub fn cut(text: &str, width: usize) -> String {
    let len = text.chars().count();
    if len <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let (head, tail) = (kept.div_ceil(2), kept / 2);
    let mut short: String = text.chars().take(head).collect();
    short.push('…');
    short.extend(text.chars().skip(len - tail));
    short
}

/// `text` without control characters: a server's bytes must not move the cursor of a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `text` broken at spaces into lines of at most [`WIDTH_MAX`] characters, each indented by `indent`.
pub fn wrapped(text: &str, indent: usize) -> String {
    let room = WIDTH_MAX.saturating_sub(indent);
    let (mut out, mut line) = (String::new(), String::new());
    for word in printable(text).split_whitespace() {
        let is_full = !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room;
        if is_full {
            out += &format!("{:indent$}{line}\n", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    if !line.is_empty() {
        out += &format!("{:indent$}{line}\n", "");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_on_their_sides() {
        let mut table = Table::new([text("NAME"), number("MS")]);
        table.row(["a".into(), "1.0".into()]);
        table.row(["longer".into(), "100.0".into()]);
        assert_eq!(table.render(), "NAME       MS\na         1.0\nlonger  100.0\n");
    }

    #[test]
    fn no_line_passes_the_limit_and_short_columns_are_left_whole() {
        let mut table = Table::new([text("ID"), text("REASON"), text("KNOB")]).indented(2);
        table.row(["7".into(), "r".repeat(300), "k".repeat(150)]);
        let text = table.render();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH_MAX), "{text}");
        assert!(text.contains('…') && text.contains("  7 "), "{text}");
    }

    #[test]
    fn both_ends_of_a_long_text_are_kept() {
        assert_eq!(cut("cpu_quota(sage-demo/node-a/batch)", 21), "cpu_quota(…-a/batch)".replace('…', "…e"));
        assert_eq!(cut("short", 5), "short");
    }

    #[test]
    fn a_table_of_more_columns_than_fit_still_ends() {
        let mut table = Table::new(vec![text("COLUMN"); 40]);
        table.row(vec!["x".repeat(20); 40]);
        assert_eq!(table.render().lines().count(), 2);
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let mut table = Table::new([text("A")]);
        table.row(["\x1b[2J\nx".into()]);
        assert!(!table.render().contains('\x1b'));
    }

    #[test]
    fn wrapping_keeps_every_word_within_the_limit() {
        let words = "word ".repeat(60);
        let text = wrapped(&words, 4);
        assert_eq!(text.split_whitespace().count(), 60);
        assert!(text.lines().all(|line| line.starts_with("    word") && line.len() <= WIDTH_MAX));
    }
}
