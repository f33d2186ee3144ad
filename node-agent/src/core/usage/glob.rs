//! Patterns over cgroup paths: `*` matches within one part of the path, `**` any number of parts.

/// A compiled pattern.
///
/// `a/*/c` matches `a/b/c`; `a/**` matches `a` and everything below it; `x*.service` matches `xy.service`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Glob {
    parts: Vec<String>,
}

impl Glob {
    /// Compiles `pattern`; leading and trailing slashes do not matter.
    pub fn new(pattern: &str) -> Self {
        Self { parts: pattern.trim_matches('/').split('/').map(str::to_owned).collect() }
    }

    /// Whether the whole of `path` matches.
    pub fn matches(&self, path: &str) -> bool {
        let path: Vec<&str> = path.trim_matches('/').split('/').collect();
        parts_match(&self.parts, &path)
    }

    /// The parts of the pattern, for walking a tree along it.
    pub fn parts(&self) -> &[String] {
        &self.parts
    }
}

/// Row by row, so the work is `pattern.len() * path.len()` whatever the pattern.
fn parts_match(pattern: &[String], path: &[&str]) -> bool {
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        if part == "**" {
            let mut any = false;
            for (slot, before) in next.iter_mut().zip(&reached) {
                any |= *before;
                *slot = any;
            }
        } else {
            for (index, name) in path.iter().enumerate() {
                next[index + 1] = reached[index] && part_matches(part, name);
            }
        }
        reached = next;
    }
    reached[path.len()]
}

/// Whether `name` matches `pattern`, where `*` stands for any run of characters. Greedy with one step back.
pub fn part_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            p += 1;
            n += 1;
        } else if let Some((star, from)) = retry {
            retry = Some((star, from + 1));
            p = star + 1;
            n = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stays_within_one_part_and_two_cross_parts() {
        let yes = [
            ("a/b", "a/b"),
            ("a/*", "a/b"),
            ("*/b", "a/b"),
            ("**", "a/b/c"),
            ("a/**", "a"),
            ("a/**/z", "a/b/c/z"),
            ("a/**/z", "a/z"),
            ("docker-*.scope", "docker-0af.scope"),
            ("/a/b/", "a/b"),
            ("a*b*c", "aXbYbZc"),
        ];
        let no = [("a/*", "a/b/c"), ("a", "a/b"), ("a/b", "a"), ("a*", "ba"), ("a/**/z", "a/b"), ("", "a")];
        for (pattern, path) in yes {
            assert!(Glob::new(pattern).matches(path), "{pattern} {path}");
        }
        for (pattern, path) in no {
            assert!(!Glob::new(pattern).matches(path), "{pattern} {path}");
        }
    }

    #[test]
    fn hostile_patterns_take_no_exponential_time() {
        assert!(!Glob::new(&"*a".repeat(60)).matches(&"a".repeat(59)));
        assert!(!Glob::new(&"**/a/".repeat(60)).matches(&"a/".repeat(59)));
    }

    proptest! {
        #[test]
        fn a_path_matches_itself_and_two_stars(path in "[a-z]{1,4}(/[a-z]{1,4}){0,5}") {
            prop_assert!(Glob::new(&path).matches(&path));
            prop_assert!(Glob::new("**").matches(&path));
        }
    }
}
