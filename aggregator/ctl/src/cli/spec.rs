//! Objectives as an operator types them: `NAME:SERVICE[:OPERATION]:pP<DURATION`, for example
//! `checkout:frontend:GET /checkout:p99<50ms`.

use std::str::FromStr;

use thiserror::Error;

use sage_aggregator::config::SloSettings;

/// A text that is no objective.
#[derive(Clone, Debug, Error, PartialEq)]
#[error(
    "{text:?} is no objective: {problem}\nwant NAME:SERVICE[:OPERATION]:pP<DURATION, for example shop:frontend:p99<50ms"
)]
pub struct SpecError {
    text: String,
    problem: String,
}

/// One argument of `slo set`.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// The name of a suggestion.
    Suggestion(String),
    /// A whole objective.
    Objective(SloSettings),
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if !text.contains(':') {
            return Ok(Self::Suggestion(text.to_owned()));
        }
        parse(text).map(Self::Objective).map_err(|problem| SpecError { text: text.to_owned(), problem })
    }
}

fn parse(text: &str) -> Result<SloSettings, String> {
    let (head, goal) = text.rsplit_once(':').ok_or("no ':' in it")?;
    let mut parts = head.splitn(3, ':');
    let name = parts.next().unwrap_or_default().to_owned();
    let service = parts.next().ok_or("no service")?.to_owned();
    let operation = parts.next().map(str::to_owned);
    let (percentile, duration) =
        goal.strip_prefix('p').and_then(|goal| goal.split_once('<')).ok_or("the last part is not pP<DURATION")?;
    let percentile = percentile.parse().map_err(|_| format!("{percentile:?} is no percentile"))?;
    let target_ms =
        millis(duration).ok_or_else(|| format!("{duration:?} is no duration, such as 50ms, 800us or 1.5s"))?;
    let slo = SloSettings { name, service, operation, percentile, target_ms };
    slo.validate().map_err(|error| error.to_string())?;
    Ok(slo)
}

fn millis(text: &str) -> Option<f64> {
    // "ms" and "us" before "s", which ends all three.
    let units = [("ms", 1.0), ("us", 1e-3), ("s", 1e3)];
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    number.trim().parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objective(text: &str) -> SloSettings {
        match text.parse() {
            Ok(Spec::Objective(slo)) => slo,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn an_objective_is_read_with_and_without_an_operation() {
        let slo = objective("shop:frontend:p99<50ms");
        assert_eq!((slo.name.as_str(), slo.service.as_str(), slo.operation.as_deref()), ("shop", "frontend", None));
        assert_eq!((slo.percentile, slo.target_ms), (99.0, 50.0));
        let slo = objective("shop:frontend:GET /a:b<c:p99.9<1.5s");
        assert_eq!((slo.operation.as_deref(), slo.percentile, slo.target_ms), (Some("GET /a:b<c"), 99.9, 1500.0));
        assert_eq!(objective("a:b:p50<800us").target_ms, 0.8);
    }

    #[test]
    fn a_bare_name_means_a_suggestion() {
        assert_eq!("shop".parse(), Ok(Spec::Suggestion("shop".into())));
    }

    #[test]
    fn what_is_wrong_is_said_with_an_example() {
        for (text, problem) in [
            ("a:b", "no service"),
            ("a:b:99<5ms", "the last part"),
            ("a:b:p99<5", "no duration"),
            ("a:b:px<5ms", "no percentile"),
            ("a:b c:p99<5ms", "slo.service"),
            ("a:b:p0<5ms", "slo.percentile"),
            ("a:b:p99<-5ms", "slo.target_ms"),
        ] {
            let error = text.parse::<Spec>().expect_err(text).to_string();
            assert!(error.contains(problem) && error.contains("for example"), "{text}: {error}");
        }
    }
}
