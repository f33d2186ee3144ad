//! What can be set, as an operator writes it, and what that means in a scene.

use std::str::FromStr;

use sage_common::{Metric, MetricGroup, config::edit_distance};
use thiserror::Error;

use super::{Stage, World};
use crate::{
    resource,
    robust::normal_cdf,
    scene::{OwnExcess, UsageScore},
    verdict::Resource,
};

/// Resources of a service by the names that operators write.
pub const RESOURCES: [(&str, Resource); 5] = [
    ("cpu", Resource::Cpu),
    ("memory", Resource::Memory),
    ("disk", Resource::Disk),
    ("network", Resource::Network),
    ("software", Resource::Software),
];

/// Names offered in the place of an unknown one.
const NEAR_MAX: usize = 3;

/// Halvings of [-8, 8] when the normal distribution is inverted: finer than any z.
const BISECTIONS: usize = 40;

/// `SERVICE=normal`, `SERVICE.RESOURCE=normal` or `SERVICE.METRIC=p50`.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// A service, or a service, a dot, and one of its resources or metrics.
    pub name: String,
    /// What it is set to.
    pub level: Level,
}

/// What something is set to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    /// Its normal at the present load.
    Normal,
    /// A percentile of its normal spread at the present load; of metrics alone.
    Percentile(f64),
}

/// Not a setting.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{text:?}: want SERVICE=normal, SERVICE.RESOURCE=normal or SERVICE.METRIC=pN with N from 1 to 99")]
pub struct InvalidSetting {
    /// What was given.
    pub text: String,
}

/// A name that nobody knows.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("there is no {what} {name:?}{}", hint(.near, .known))]
pub struct UnknownName {
    /// What it should have been.
    pub what: String,
    /// The name.
    pub name: String,
    /// Known names that look like it.
    pub near: Vec<String>,
    /// All known names where there are few.
    pub known: Vec<String>,
}

fn hint(near: &[String], known: &[String]) -> String {
    if !near.is_empty() {
        format!("; did you mean {}?", near.join(", "))
    } else if !known.is_empty() {
        format!("; there are {}", known.join(", "))
    } else {
        String::new()
    }
}

impl UnknownName {
    /// `name`, which is none of `known`.
    pub fn new(what: impl Into<String>, name: &str, known: impl IntoIterator<Item = String>) -> Self {
        let mut known: Vec<String> = known.into_iter().collect();
        known.sort();
        known.dedup();
        let mut near: Vec<(usize, &String)> = known.iter().map(|one| (edit_distance(name, one), one)).collect();
        near.sort();
        let is_near = |(distance, one): &(usize, &String)| {
            *distance <= name.len().div_ceil(3) || (name.len() > 2 && one.contains(name))
        };
        let near: Vec<String> = near.into_iter().filter(is_near).take(NEAR_MAX).map(|(_, one)| one.clone()).collect();
        known.truncate(Metric::COUNT);
        Self { what: what.into(), name: name.to_owned(), near, known }
    }
}

impl FromStr for Setting {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let invalid = || InvalidSetting { text: text.to_owned() };
        let (name, level) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(invalid)?;
        let percentile = |digits: &str| digits.parse().ok().filter(|p| (1.0..=99.0).contains(p)).map(Level::Percentile);
        let level = match level.strip_prefix('p') {
            _ if level == "normal" => Level::Normal,
            Some(digits) => percentile(digits).ok_or_else(invalid)?,
            None => return Err(invalid()),
        };
        Ok(Self { name: name.to_owned(), level })
    }
}

/// The world that `settings` make.
pub(super) fn resolve(stage: &Stage<'_>, settings: &[Setting]) -> Result<World, UnknownName> {
    let mut world = World::default();
    for setting in settings {
        let (service, share, set) = resolve_one(stage, setting, &mut world.notes)?;
        world.set.push(set);
        match world.repairs.iter_mut().find(|(of, _)| *of == service) {
            Some((_, repaired)) => *repaired = (*repaired + share).min(1.0),
            None => world.repairs.push((service, share)),
        }
    }
    world.repairs.retain(|(_, share)| *share > 0.0);
    Ok(world)
}

fn resolve_one(
    stage: &Stage<'_>,
    setting: &Setting,
    notes: &mut Vec<String>,
) -> Result<(usize, f64, String), UnknownName> {
    let Setting { name, level } = setting;
    if let (Some(service), Level::Normal) = (stage.service(name), level) {
        return Ok((service, 1.0, format!("{name}: normal")));
    }
    let parts = name.rsplit_once('.').and_then(|(service, what)| Some((stage.service(service)?, service, what)));
    let Some((service, owner, what)) = parts else {
        // A dot may be part of the service's name, or what it misspells.
        let owner =
            name.rsplit_once('.').filter(|_| stage.service(name).is_none()).map_or(name.as_str(), |(owner, _)| owner);
        return match stage.service(owner) {
            Some(_) => Err(stage.unknown_part(owner, "", None)),
            None => Err(UnknownName::new("service", owner, stage.services())),
        };
    };
    if let (Some((_, resource)), Level::Normal) = (RESOURCES.iter().find(|(name, _)| *name == what), level) {
        return Ok((service, stage.responsibility(service, *resource), format!("{owner}: {what} normal")));
    }
    let metric = Metric::ALL.into_iter().find(|metric| metric.name() == what);
    let score = metric.and_then(|metric| stage.scene.services[service].score(metric));
    let Some(score) = score else { return Err(stage.unknown_part(owner, what, Some(service))) };
    let percentile = if let Level::Percentile(percentile) = level { *percentile } else { 50.0 };
    let share = stage.metric_share(service, score, percentile);
    if share <= 0.0 {
        notes.push(format!("{what} of {owner} is no higher than that, or nothing is blamed on it: it changes nothing"));
    }
    Ok((service, share, format!("{owner}: {what} at its normal p{percentile}")))
}

impl Stage<'_> {
    fn service(&self, name: &str) -> Option<usize> {
        self.scene.graph.services().iter().position(|service| service.as_str() == name)
    }

    fn services(&self) -> impl Iterator<Item = String> + '_ {
        self.scene.graph.services().iter().map(ToString::to_string)
    }

    /// A service's `what`, which it does not have.
    fn unknown_part(&self, owner: &str, what: &str, service: Option<usize>) -> UnknownName {
        let metrics = service.map(|service| &self.scene.services[service].usage).into_iter().flatten();
        let names = metrics.map(|score| score.metric.name().to_owned());
        let resources = RESOURCES.iter().map(|(name, _)| (*name).to_owned());
        UnknownName::new(format!("metric or resource of {owner} called"), what, names.chain(resources))
    }

    /// How far the diagnosis holds `resource` responsible for the service's own excess: its P for the one it names, the
    /// rest shared evenly by the others.
    pub(super) fn responsibility(&self, service: usize, resource: Resource) -> f64 {
        let finding = self.finding(service);
        if finding.resource == resource { finding.p } else { (1.0 - finding.p) / (RESOURCES.len() - 1) as f64 }
    }

    pub(super) fn finding(&self, service: usize) -> resource::Finding {
        let excess: OwnExcess = self.scene.own_excess(service);
        resource::name(&self.scene, self.model.group_null(), service, excess)
    }

    /// The share of its service's own excess that goes when a metric goes to a percentile of its normal spread.
    fn metric_share(&self, service: usize, score: &UsageScore, percentile: f64) -> f64 {
        let group = score.metric.group();
        let of_group = self.scene.services[service].usage.iter().filter(|other| other.metric.group() == group);
        let strongest = of_group.map(|other| other.z).fold(score.z, f64::max);
        if score.z <= 0.0 || group == MetricGroup::Process {
            return 0.0;
        }
        let back = ((score.z - z_of(percentile / 100.0)) / score.z).clamp(0.0, 1.0);
        back * score.z / strongest * self.responsibility(service, group.into())
    }
}

/// The z below which `share` of a normal distribution lies.
fn z_of(share: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..BISECTIONS {
        let middle = 0.5 * (low + high);
        if normal_cdf(middle) < share { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_as_operators_write_them() {
        let parse = |text: &str| text.parse::<Setting>();
        let normal = Setting { name: "a.b".into(), level: Level::Normal };
        assert_eq!(parse("a.b=normal"), Ok(normal));
        assert_eq!(parse("geo.cpu_used=p50").map(|setting| setting.level), Ok(Level::Percentile(50.0)));
        for text in ["geo", "=normal", "geo=p0", "geo=p100", "geo=pnan", "geo=fast", "geo.cpu_used=50"] {
            assert!(parse(text).expect_err(text).to_string().contains("want SERVICE=normal"), "{text}");
        }
    }

    #[test]
    fn an_unknown_name_offers_those_that_look_like_it() {
        let known = || ["checkout", "catalogue", "cart"].map(str::to_owned);
        let error = UnknownName::new("service", "chekout", known());
        assert_eq!(error.to_string(), "there is no service \"chekout\"; did you mean checkout?");
        let error = UnknownName::new("service", "zzz", known()).to_string();
        assert!(error.ends_with("there are cart, catalogue, checkout"), "{error}");
    }

    #[test]
    fn the_normal_distribution_is_inverted() {
        assert!(z_of(0.5).abs() < 1e-6);
        assert!((z_of(0.975) - 1.96).abs() < 1e-3);
    }
}
