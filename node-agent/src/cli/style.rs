//! Colours and columns for people. None of it where the output is no terminal or `NO_COLOR` is set.

use std::io::IsTerminal;

/// Whether to use colours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Style(bool);

impl Style {
    /// No colours.
    #[cfg(test)]
    pub const PLAIN: Self = Self(false);

    /// As standard output and the environment allow.
    pub fn of_stdout() -> Self {
        let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self(is_wanted && std::io::stdout().is_terminal())
    }

    /// For headings.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// For what is well.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For what is not.
    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Lines with columns as wide as their widest cell; numbers to the right.
pub fn table(style: Style, head: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().map(|row| width(&row[column])).max().unwrap_or(0).max(width(head[column])))
        .collect();
    let is_number =
        |column: usize| rows.iter().all(|row| row[column].starts_with(|c: char| c.is_ascii_digit() || c == '-'));
    let line = |cells: &[&str]| {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let pad = " ".repeat(widths[column].saturating_sub(width(cell)));
            if is_number(column) { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut text = style.bold(&line(head)) + "\n";
    for row in rows {
        text += &(line(&row.iter().map(String::as_str).collect::<Vec<_>>()) + "\n");
    }
    text
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// Bytes in the unit that reads best.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_024 => format!("{count} B"),
        1_024..1_048_576 => format!("{:.1} KiB", count as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", count as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", count as f64 / 1_073_741_824.0),
    }
}

/// A span of time in its two largest units.
pub fn duration(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_stand_to_the_right() {
        let rows = [vec!["geo".to_owned(), "5".to_owned()], vec!["frontend".to_owned(), "120".to_owned()]];
        let text = table(Style::PLAIN, &["SERVICE", "CALLS"], &rows);
        assert_eq!(text, "SERVICE   CALLS\ngeo           5\nfrontend    120\n");
    }

    #[test]
    fn quantities_read_in_fitting_units() {
        assert_eq!(bytes(14_889_779), "14.2 MiB");
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(11_529), "3 h 12 min");
        assert_eq!(duration(200_000), "2 d 7 h");
    }
}
