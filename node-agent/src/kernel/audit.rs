//! The audit file: every command, refusal, write, read-back and revert is one line of JSON, appended.
//!
//! The file is opened for each line, so that it may be rotated by renaming. An audit that cannot be written does not
//! stop a revert; it is counted, and `status` shows it.
#![expect(clippy::disallowed_methods, reason = "driver: keeps a file and reads the wall clock")]

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value};

/// The audit file.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    failures: u64,
}

impl Audit {
    /// An audit in the file at `path`; its directory is made if need be.
    ///
    /// # Errors
    ///
    /// The error of making the directory or of opening the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        options().open(path)?;
        Ok(Self { path: path.to_owned(), failures: 0 })
    }

    /// Lines that could not be written.
    pub const fn failures(&self) -> u64 {
        self.failures
    }

    /// Appends one line: the time, the kind of event, and its fields.
    pub fn write(&mut self, event: &str, fields: impl IntoIterator<Item = (&'static str, Value)>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = Map::new();
        line.insert("at_ms".to_owned(), Value::from(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)));
        line.insert("event".to_owned(), Value::from(event));
        line.extend(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
        let text = format!("{}\n", Value::Object(line));
        // One write call, so that lines of one file never mix.
        let written = options().open(&self.path).and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            self.failures += 1;
            tracing::warn!(path = %self.path.display(), %error, "an audit line could not be written");
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_one_line_of_json_even_after_a_rotation() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log/audit.jsonl");
        let mut audit = Audit::open(&path).expect("open");
        audit.write("command", [("text", Value::from("two\nlines"))]);
        std::fs::rename(&path, dir.path().join("old")).expect("rename");
        audit.write("revert", []);
        for (file, event) in [(dir.path().join("old"), "command"), (path, "revert")] {
            let text = std::fs::read_to_string(file).expect("read");
            let line: Value = serde_json::from_str(text.trim_end()).expect("one line of JSON");
            assert_eq!(line["event"], event);
            assert!(line["at_ms"].as_u64().expect("time") > 1_600_000_000_000);
        }
        assert_eq!(audit.failures(), 0);
    }
}
