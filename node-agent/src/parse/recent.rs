//! Names seen a moment ago: a batch repeats a few of them, and an equal one is cheaper to share than to make.

use sage_common::{OperationId, ServiceId};

/// Names remembered. A linear search of so few costs less than an allocation.
const NAMES_MAX: usize = 16;

/// A type made of text.
pub(super) trait Name: Clone {
    fn text(&self) -> &str;
    fn make(text: &str) -> Self;
}

impl Name for OperationId {
    fn text(&self) -> &str {
        self.as_str()
    }

    fn make(text: &str) -> Self {
        Self::sanitized(text)
    }
}

impl Name for ServiceId {
    fn text(&self) -> &str {
        self.as_str()
    }

    fn make(text: &str) -> Self {
        Self::sanitized(text)
    }
}

/// The last few names; the oldest is forgotten first.
#[derive(Debug)]
pub(super) struct Recent<T> {
    names: Vec<T>,
    next: usize,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { names: Vec::new(), next: 0 }
    }
}

impl<T: Name> Recent<T> {
    /// The nearest valid name of `text`.
    pub fn get(&mut self, text: &str) -> T {
        if let Some(known) = self.names.iter().find(|name| name.text() == text) {
            return known.clone();
        }
        let name = T::make(text);
        if self.names.len() < NAMES_MAX {
            self.names.push(name.clone());
        } else {
            self.names[self.next] = name.clone();
            self.next = (self.next + 1) % NAMES_MAX;
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_right_whether_remembered_or_not() {
        let mut recent = Recent::<OperationId>::default();
        for round in 0..3 {
            for n in 0..40 {
                let text = format!("op {n} ä{round}");
                assert_eq!(recent.get(&text), OperationId::sanitized(&text));
                assert_eq!(recent.get(&text), OperationId::sanitized(&text));
            }
        }
        assert_eq!(recent.names.len(), NAMES_MAX);
    }
}
