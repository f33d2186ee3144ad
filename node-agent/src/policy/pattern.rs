//! Patterns for names and cgroup paths: `*` stands for anything within one path part, `**` for any number of parts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A checked pattern: 1 to 240 bytes without control characters, no empty path part.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// The longest pattern, in bytes: the longest cgroup path.
const PATTERN_LEN_MAX: usize = 240;

impl Pattern {
    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has no wildcard.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        let pattern: Vec<&str> = self.0.split('/').collect();
        let parts: Vec<&str> = text.split('/').collect();
        // Row i, column j: whether the first i pattern parts match the first j text parts. No recursion, so that a
        // pattern with many `**` costs length times length and no more.
        let mut row = vec![false; parts.len() + 1];
        row[0] = true;
        for wanted in pattern {
            row = if wanted == "**" { spread(&row) } else { step(&row, wanted, &parts) };
        }
        row[parts.len()]
    }

    /// Whether `text` matches, lies above something that matches, or lies below it.
    pub fn touches(&self, text: &str) -> bool {
        let mut pattern = self.0.split('/');
        let mut parts = text.split('/');
        loop {
            match (pattern.next(), parts.next()) {
                (Some("**"), _) | (None, _) | (_, None) => return true,
                (Some(wanted), Some(part)) if part_matches(wanted, part) => {}
                _ => return false,
            }
        }
    }
}

/// The next row for `**`: once true, true for every longer text.
fn spread(row: &[bool]) -> Vec<bool> {
    row.iter()
        .scan(false, |seen, matched| {
            *seen |= matched;
            Some(*seen)
        })
        .collect()
}

/// The next row for one ordinary part.
fn step(row: &[bool], wanted: &str, parts: &[&str]) -> Vec<bool> {
    let tail = parts.iter().zip(row).map(|(part, before)| *before && part_matches(wanted, part));
    std::iter::once(false).chain(tail).collect()
}

/// Whether `part` matches `wanted`, where `*` stands for any run of characters. Greedy, with one point of return.
fn part_matches(wanted: &str, part: &str) -> bool {
    let (wanted, part) = (wanted.as_bytes(), part.as_bytes());
    let (mut w, mut p, mut retry) = (0, 0, None);
    while p < part.len() {
        if wanted.get(w) == Some(&b'*') {
            retry = Some((w, p));
            w += 1;
        } else if wanted.get(w) == Some(&part[p]) {
            (w, p) = (w + 1, p + 1);
        } else if let Some((star, at)) = retry {
            retry = Some((star, at + 1));
            (w, p) = (star + 1, at + 1);
        } else {
            return false;
        }
    }
    wanted[w..].iter().all(|byte| *byte == b'*')
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = (1..=PATTERN_LEN_MAX).contains(&text.len());
        let is_part = |part: &str| !part.is_empty() && part != ".." && part.bytes().all(|byte| byte.is_ascii_graphic());
        if fits && text.split('/').all(is_part) {
            Ok(Self(text))
        } else {
            let shown: String = text.chars().take(80).collect();
            Err(format!(
                "invalid pattern {shown:?}: want 1 to {PATTERN_LEN_MAX} printable characters, relative, no '..'"
            ))
        }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::try_from(text.to_owned()).expect("valid pattern")
    }

    #[test]
    fn a_star_stays_within_its_part_and_two_stars_do_not() {
        for (wanted, text, expected) in [
            ("a/b*", "a/batch", true),
            ("a/b*", "a/batch/x", false),
            ("a/*", "a/b/c", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", true),
            ("**", "a/b", true),
            ("**/geo", "x/y/geo", true),
            ("**/geo", "geo", true),
            ("**/geo", "geo/x", false),
            ("a/**/c/*", "a/b/b/c/d", true),
            ("*x*y", "axbxcy", true),
            ("*x*y", "axbxc", false),
            ("*", "frontend", true),
            ("geo", "geo2", false),
        ] {
            assert_eq!(pattern(wanted).matches(text), expected, "{wanted} on {text}");
        }
    }

    #[test]
    fn protection_reaches_up_and_down_but_not_sideways() {
        let ssh = pattern("system.slice/ssh*");
        for (text, expected) in [
            ("system.slice/ssh.service", true),
            ("system.slice/ssh.service/x", true),
            ("system.slice", true),
            ("system.slice/cron.service", false),
            ("user.slice", false),
        ] {
            assert_eq!(ssh.touches(text), expected, "{text}");
        }
    }

    #[test]
    fn hostile_patterns_are_refused_and_cost_no_more_than_their_length() {
        for bad in ["", "/a", "a//b", "a/../b", "a b", &"x".repeat(241)] {
            assert!(Pattern::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        let deep = ["**"; 80].join("/");
        assert!(!pattern(&format!("{}/z", &deep[..200])).matches(&["a"; 120].join("/")));
    }
}
