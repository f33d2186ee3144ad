//! Finds cgroups: those that patterns name, those that hold a container's id.

use std::{collections::BTreeSet, path::Path};

use sage_common::CgroupPath;

use crate::core::usage::{Glob, glob::part_matches};

/// Directories looked at per walk. A node with 10,000 cgroups is walked only in part, and says so.
pub const DIRECTORIES_MAX: usize = 16_384;
/// Depth of a walk: systemd inside containers inside slices stays below.
const DEPTH_MAX: usize = 24;

/// What a walk found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Walk {
    /// The cgroups that match.
    pub found: BTreeSet<CgroupPath>,
    /// Directories looked at.
    pub visited: usize,
}

impl Walk {
    /// Whether the walk ended early because there are too many cgroups.
    pub const fn is_cut(&self) -> bool {
        self.visited >= DIRECTORIES_MAX
    }

    /// Adds the cgroups below `root` that match `pattern`. Parts without a star are not searched for but looked up.
    pub fn add(&mut self, root: &Path, pattern: &Glob) {
        self.descend(root, "", pattern.parts(), 0);
    }

    fn descend(&mut self, root: &Path, path: &str, parts: &[String], depth: usize) {
        if self.is_cut() || depth > DEPTH_MAX {
            return;
        }
        self.visited += 1;
        let Some((part, rest)) = parts.split_first() else {
            if root.join(path).is_dir() {
                self.found.extend(CgroupPath::try_from(path.to_owned()));
            }
            return;
        };
        if !part.contains('*') {
            return self.descend(root, &join(path, part), rest, depth + 1);
        }
        if part == "**" {
            self.descend(root, path, rest, depth + 1);
        }
        for name in children(&root.join(path)) {
            if part == "**" {
                self.descend(root, &join(path, &name), parts, depth + 1);
            } else if part_matches(part, &name) {
                self.descend(root, &join(path, &name), rest, depth + 1);
            }
        }
    }
}

/// The cgroup of the container `id`: the outermost whose name holds it, as every runtime names them
/// (`docker-ID.scope`, `cri-containerd-ID.scope`, `ID`).
pub fn container(root: &Path, id: &str) -> Option<CgroupPath> {
    let mut walk = Walk::default();
    walk.add(root, &Glob::new(&format!("**/*{id}*")));
    walk.found.into_iter().min_by_key(|path| path.as_str().len())
}

fn join(path: &str, part: &str) -> String {
    if path.is_empty() { part.to_owned() } else { format!("{path}/{part}") }
}

/// Names of the directories in `directory`, sorted: the same tree gives the same walk.
fn children(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let is_directory = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.filter(is_directory).filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary directory");
        for path in ["app/node-a/geo", "app/node-a/batch-1", "app/node-b/geo", "docker/0123456789abcdef/init"] {
            std::fs::create_dir_all(root.path().join(path)).expect("writable");
        }
        root
    }

    fn found(patterns: &[&str]) -> (Vec<String>, usize) {
        let root = tree();
        let mut walk = Walk::default();
        patterns.iter().for_each(|pattern| walk.add(root.path(), &Glob::new(pattern)));
        (walk.found.iter().map(ToString::to_string).collect(), walk.visited)
    }

    #[test]
    fn patterns_find_what_they_match_and_only_that() {
        assert_eq!(found(&["app/*/geo"]).0, ["app/node-a/geo", "app/node-b/geo"]);
        assert_eq!(found(&["app/node-a/batch*", "none/*"]).0, ["app/node-a/batch-1"]);
        assert_eq!(found(&["**/geo"]).0, ["app/node-a/geo", "app/node-b/geo"]);
        assert_eq!(
            found(&["app/node-a/geo"]),
            (vec!["app/node-a/geo".to_owned()], 4),
            "a plain path is not searched for"
        );
    }

    #[test]
    fn a_container_is_found_by_its_id() {
        let root = tree();
        let path = container(root.path(), "0123456789ab").expect("is there");
        assert_eq!(path.as_str(), "docker/0123456789abcdef");
        assert_eq!(container(root.path(), "ffffffffffff"), None);
    }
}
