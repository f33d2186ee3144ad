//! Reading the workspace's own source text.
#![allow(clippy::disallowed_methods, reason = "tests read the source tree")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// One source file of the workspace.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path from the workspace's root, with `/`.
    pub path: String,
    /// Its lines of code before the first `#[cfg(test)]`, numbered from 1, without comments.
    pub code: Vec<(usize, String)>,
}

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The manifest of the crate in `crate_folder`; empty when there is none.
pub fn manifest(crate_folder: &str) -> String {
    fs::read_to_string(root().join(crate_folder).join("Cargo.toml")).unwrap_or_default()
}

/// Every Rust file below the root's folder `folder`, but for modules that only tests have.
pub fn below(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(folder)];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if path.extension().is_some_and(|ending| ending == "rs") && !is_test_only(&path) {
            found.push(read(&path));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Whether the module above declares this file's module behind `#[cfg(test)]`.
fn is_test_only(path: &Path) -> bool {
    let (Some(folder), Some(name)) = (path.parent(), path.file_stem()) else { return false };
    let declared = format!("#[cfg(test)]\nmod {};", name.to_string_lossy());
    let above = [folder.join("mod.rs"), folder.join("lib.rs"), folder.with_extension("rs")];
    above.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(&declared)))
}

fn read(path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap_or_default();
    let production = text.lines().enumerate().take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    let code = production
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default().to_owned()))
        .filter(|(_, line)| !line.trim().is_empty())
        .collect();
    let path = path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned();
    Source { path, code }
}

/// `path:line: text` of every line that holds `word` as a whole word.
pub fn lines_naming(sources: &[Source], word: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let names = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            !before.is_some_and(is_part) && !after.is_some_and(is_part)
        })
    };
    let in_file = |source: &Source| {
        let lines = source.code.iter().filter(|(_, line)| names(line));
        lines.map(|(number, line)| format!("{}:{number}: {}", source.path, line.trim())).collect::<Vec<_>>()
    };
    sources.iter().flat_map(in_file).collect()
}
