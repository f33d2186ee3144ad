//! The operator's judgement of an incident: what was really at fault. The model never sees it.

use sage_causal::verdict::Resource;
use sage_common::{ServiceId, Timestamp};
use serde::{Deserialize, Serialize};

/// Causes of one label: more than the model ever names together.
pub const CAUSES_MAX: usize = 8;

/// What was really at fault.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Label {
    /// Every true cause, at least one.
    pub causes: Vec<TrueCause>,
    /// When the operator said so.
    pub at: Timestamp,
}

/// One service that was really at fault.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TrueCause {
    /// The service.
    pub service: ServiceId,
    /// What of it, when the operator knows.
    pub resource: Option<Resource>,
}

impl Label {
    /// `causes` as said `at`, each service once; the text says why that is no label.
    ///
    /// # Errors
    ///
    /// A text for people: no cause, or more than [`CAUSES_MAX`], or a service twice.
    pub fn new(causes: Vec<TrueCause>, at: Timestamp) -> Result<Self, String> {
        if !(1..=CAUSES_MAX).contains(&causes.len()) {
            return Err(format!("{} causes: want 1 to {CAUSES_MAX}", causes.len()));
        }
        for (place, cause) in causes.iter().enumerate() {
            if causes[..place].iter().any(|other| other.service == cause.service) {
                return Err(format!("{} is named twice", cause.service));
            }
        }
        Ok(Self { causes, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(service: &str) -> TrueCause {
        TrueCause { service: ServiceId::sanitized(service), resource: Some(Resource::Cpu) }
    }

    #[test]
    fn a_label_names_each_of_a_few_services_once() {
        let label = |names: &[&str]| Label::new(names.iter().map(|name| cause(name)).collect(), Timestamp::default());
        assert_eq!(label(&["geo", "rate"]).expect("two").causes.len(), 2);
        assert!(label(&[]).is_err());
        assert!(label(&["geo", "geo"]).expect_err("twice").contains("geo is named twice"));
        assert!(label(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]).is_err());
    }
}
