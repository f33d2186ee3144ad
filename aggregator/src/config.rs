//! `aggregator.toml`: what an operator writes ([`Settings`]) and what the program runs on ([`Config`]).
//!
//! Reading the file is left to the program; this module only checks its text.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use sage_common::{ConfigError, Micros, NodeId, OperationId, ServiceId, Slo, config};
use sage_protocol::identity::FleetName;
use serde::{Deserialize, Serialize};

/// Where the file is looked for when neither `--config` nor `SAGE_CONFIG` names one.
pub const PATH_DEFAULT: &str = "/etc/sage/aggregator.toml";

/// The defaults as a file with comments, for `config default`.
pub const DEFAULT_TEXT: &str = include_str!("default.toml");

/// More objectives than this in one file are a mistake: each is evaluated on every window.
pub const SLOS_MAX: usize = 64;

/// `aggregator.toml` as written. Every key has a default that works on one machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Name of this aggregator.
    pub name: String,
    /// Name of the fleet.
    pub fleet: String,
    /// Where durable state lives.
    pub state_dir: PathBuf,
    /// UDP address for agents.
    pub quic: String,
    /// TCP address of the HTTP API.
    pub http: String,
    /// Certificates.
    pub tls: TlsSettings,
    /// Observation windows.
    pub window: WindowSettings,
    /// When to train.
    pub learning: LearningSettings,
    /// When to diagnose.
    pub diagnosis: DiagnosisSettings,
    /// How to act.
    pub planner: PlannerSettings,
    /// Targets.
    pub slo: Vec<SloSettings>,
}

/// `[tls]`: PEM files.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificate of the fleet's authority.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Our private key.
    pub key: PathBuf,
}

/// `[window]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WindowSettings {
    /// Length of one window.
    pub length_ms: u64,
    /// Wait for slow nodes after a window's end.
    pub lateness_ms: u64,
}

/// `[learning]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearningSettings {
    /// Healthy windows before the first model.
    pub windows_min: usize,
    /// History kept.
    pub windows_max: usize,
    /// New windows between two trainings of everything; what changed is learnt as it changes.
    pub retrain_every_windows: u64,
}

/// `[diagnosis]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiagnosisSettings {
    /// Violated windows in a row before a diagnosis.
    pub violated_windows: u32,
    /// Calls in a window below which its percentile says nothing.
    pub calls_min: u64,
}

/// How far the planner may go, whatever the nodes' policies allow.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannerMode {
    /// Act within the nodes' policies.
    #[default]
    Auto,
    /// Only say what would be done.
    Recommend,
}

/// `[planner]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerSettings {
    /// How far to go.
    pub mode: PlannerMode,
    /// Lease of one action.
    pub lease_ms: u64,
    /// Windows after which an action is judged.
    pub verify_windows: u32,
    /// Windows a helpful action is kept after the target is met again.
    pub hold_windows: u32,
}

/// One `[[slo]]`, and one entry of `PUT /api/v1/slos`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SloSettings {
    /// How people call it; unique.
    pub name: String,
    /// The service that clients call.
    pub service: String,
    /// One operation of it; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// The percentile the target speaks of.
    pub percentile: f64,
    /// The latency that percentile must stay under.
    pub target_ms: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "aggregator-1".into(),
            fleet: "local".into(),
            state_dir: "/var/lib/sage/aggregator".into(),
            quic: "127.0.0.1:7443".into(),
            http: "127.0.0.1:7480".into(),
            tls: TlsSettings::default(),
            window: WindowSettings::default(),
            learning: LearningSettings::default(),
            diagnosis: DiagnosisSettings::default(),
            planner: PlannerSettings::default(),
            slo: Vec::new(),
        }
    }
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            ca: "/etc/sage/pki/ca.pem".into(),
            cert: "/etc/sage/pki/aggregator.pem".into(),
            key: "/etc/sage/pki/aggregator.key".into(),
        }
    }
}

impl Default for WindowSettings {
    fn default() -> Self {
        Self { length_ms: 10_000, lateness_ms: 8_000 }
    }
}

impl Default for LearningSettings {
    fn default() -> Self {
        Self { windows_min: 60, windows_max: 2_000, retrain_every_windows: 720 }
    }
}

impl Default for DiagnosisSettings {
    fn default() -> Self {
        Self { violated_windows: 2, calls_min: 50 }
    }
}

impl Default for PlannerSettings {
    fn default() -> Self {
        Self { mode: PlannerMode::Auto, lease_ms: 60_000, verify_windows: 2, hold_windows: 6 }
    }
}

/// A configuration that cannot be wrong. Made by [`Settings::validate`] only.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of this aggregator.
    pub name: String,
    /// Name of the fleet.
    pub fleet: FleetName,
    /// Where durable state lives.
    pub state_dir: PathBuf,
    /// UDP address for agents.
    pub quic: SocketAddr,
    /// TCP address of the HTTP API.
    pub http: SocketAddr,
    /// Certificates.
    pub tls: TlsSettings,
    /// Length of one window.
    pub window: Micros,
    /// Wait for slow nodes after a window's end.
    pub lateness: Micros,
    /// When to train.
    pub learning: LearningSettings,
    /// When to diagnose.
    pub diagnosis: DiagnosisSettings,
    /// How far to go.
    pub mode: PlannerMode,
    /// Lease of one action.
    pub lease: Micros,
    /// Windows after which an action is judged.
    pub verify_windows: u32,
    /// Windows a helpful action is kept after the target is met again.
    pub hold_windows: u32,
    /// Targets.
    pub slos: Vec<Slo>,
}

impl Settings {
    /// Reads TOML; `origin` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Syntax`]: not TOML, a wrong type, or an unknown key.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        config::parse(text, origin)
    }

    /// The only way to make a [`Config`].
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`]: the first value that no deployment can mean.
    pub fn validate(self) -> Result<Config, ConfigError> {
        let slos = validate_slos(&self.slo)?;
        check_windows(&self.window, &self.learning, &self.diagnosis)?;
        check_planner(&self.planner, self.window.length_ms)?;
        Ok(Config {
            name: label("name", self.name)?,
            fleet: fleet(self.fleet)?,
            state_dir: self.state_dir,
            quic: address("quic", &self.quic)?,
            http: address("http", &self.http)?,
            tls: self.tls,
            window: Micros::from_millis(self.window.length_ms),
            lateness: Micros::from_millis(self.window.lateness_ms),
            learning: self.learning,
            diagnosis: self.diagnosis,
            mode: self.planner.mode,
            lease: Micros::from_millis(self.planner.lease_ms),
            verify_windows: self.planner.verify_windows,
            hold_windows: self.planner.hold_windows,
            slos,
        })
    }
}

impl SloSettings {
    /// The objective as the core knows it.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`]: a name, percentile or target out of range.
    pub fn validate(&self) -> Result<Slo, ConfigError> {
        let invalid = |key, value: &str, problem| ConfigError::Value { key, value: value.to_owned(), problem };
        let name_is_valid = self.name.parse::<NodeId>().is_ok();
        ensure(name_is_valid, "slo.name", &self.name, "want 1 to 63 letters, digits, '-', '_' or '.'")?;
        let service: ServiceId = self
            .service
            .parse()
            .map_err(|_| invalid("slo.service", &self.service, "want 1 to 63 letters, digits, '-', '_' or '.'"))?;
        let operation: Option<OperationId> =
            self.operation.as_ref().map(|text| text.parse()).transpose().map_err(|_| {
                invalid("slo.operation", self.operation.as_deref().unwrap_or(""), "want 1 to 120 printable characters")
            })?;
        let percentile_is_valid = self.percentile >= 1.0 && self.percentile <= 100.0;
        ensure(percentile_is_valid, "slo.percentile", &self.percentile, "want 1 to 100, for example 99.0")?;
        // Below 10 us no span resolves it; above one hour no client waits.
        let target_is_valid = self.target_ms >= 0.01 && self.target_ms <= 3_600_000.0;
        ensure(target_is_valid, "slo.target_ms", &self.target_ms, "want 0.01 to 3600000 milliseconds")?;
        let target = Micros::new((self.target_ms * 1e3).round() as u64);
        Ok(Slo { name: self.name.clone(), service, operation, percentile: self.percentile, target })
    }
}

impl From<&Slo> for SloSettings {
    fn from(slo: &Slo) -> Self {
        Self {
            name: slo.name.clone(),
            service: slo.service.to_string(),
            operation: slo.operation.as_ref().map(ToString::to_string),
            percentile: slo.percentile,
            target_ms: slo.target.as_millis_f64(),
        }
    }
}

/// Checks a whole list: every objective, their number, and that no name stands twice.
///
/// # Errors
///
/// [`ConfigError::Value`]: the first objective that is wrong.
pub fn validate_slos(list: &[SloSettings]) -> Result<Vec<Slo>, ConfigError> {
    ensure(list.len() <= SLOS_MAX, "slo", &format!("{} objectives", list.len()), "at most 64 are kept; remove some")?;
    let mut names = BTreeSet::new();
    list.iter()
        .map(|slo| {
            ensure(names.insert(&slo.name), "slo.name", &slo.name, "stands twice; names must be unique")?;
            slo.validate()
        })
        .collect()
}

fn check_windows(
    window: &WindowSettings,
    learning: &LearningSettings,
    diagnosis: &DiagnosisSettings,
) -> Result<(), ConfigError> {
    let WindowSettings { length_ms, lateness_ms } = *window;
    let length_is_valid = (1_000..=600_000).contains(&length_ms);
    ensure(length_is_valid, "window.length_ms", &length_ms, "want 1000 to 600000, the same as the agents'")?;
    // Windows that wait are kept in memory, so the wait has a bound.
    ensure(lateness_ms <= 60_000, "window.lateness_ms", &lateness_ms, "want at most 60000")?;
    let LearningSettings { windows_min, windows_max, retrain_every_windows } = *learning;
    // Fewer windows than this cannot fit even the linear normals.
    ensure(windows_min >= 8, "learning.windows_min", &windows_min, "want at least 8 windows")?;
    let max_is_valid = (windows_min..=20_000).contains(&windows_max);
    ensure(max_is_valid, "learning.windows_max", &windows_max, "want windows_min to 20000 windows")?;
    ensure(retrain_every_windows >= 1, "learning.retrain_every_windows", &retrain_every_windows, "want at least 1")?;
    ensure(
        diagnosis.violated_windows >= 1,
        "diagnosis.violated_windows",
        &diagnosis.violated_windows,
        "want at least 1",
    )?;
    ensure(diagnosis.calls_min >= 1, "diagnosis.calls_min", &diagnosis.calls_min, "want at least 1 call")
}

fn check_planner(planner: &PlannerSettings, length_ms: u64) -> Result<(), ConfigError> {
    let PlannerSettings { lease_ms, verify_windows, hold_windows, .. } = *planner;
    // A shorter lease would lapse between two verdicts of a healthy aggregator.
    let lease_is_long = lease_ms >= length_ms.saturating_mul(2);
    ensure(lease_is_long, "planner.lease_ms", &lease_ms, "want at least twice window.length_ms")?;
    ensure(lease_ms <= 3_600_000, "planner.lease_ms", &lease_ms, "want at most 3600000, one hour")?;
    ensure((1..=100).contains(&verify_windows), "planner.verify_windows", &verify_windows, "want 1 to 100")?;
    ensure((1..=10_000).contains(&hold_windows), "planner.hold_windows", &hold_windows, "want 1 to 10000")
}

fn label(key: &'static str, text: String) -> Result<String, ConfigError> {
    let is_label = text.parse::<NodeId>().is_ok();
    ensure(is_label, key, &text, "want 1 to 63 letters, digits, '-', '_' or '.'")?;
    Ok(text)
}

fn fleet(text: String) -> Result<FleetName, ConfigError> {
    let problem = "want 1 to 63 of a-z, 0-9, '-', '_' or '.', as in the certificates";
    text.parse().map_err(|_| ConfigError::Value { key: "fleet", value: text, problem })
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| ConfigError::Value {
        key,
        value: text.to_owned(),
        problem: "want ADDRESS:PORT, for example 127.0.0.1:7480",
    })
}

fn ensure(holds: bool, key: &'static str, value: &impl ToString, problem: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Value { key, value: value.to_string(), problem }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validate(text: &str) -> Result<Config, ConfigError> {
        Settings::parse(text, "aggregator.toml")?.validate()
    }

    #[test]
    fn the_commented_default_file_says_what_the_code_does() {
        assert_eq!(Settings::parse(DEFAULT_TEXT, "default").expect("valid"), Settings::default());
        assert!(Settings::default().validate().is_ok());
    }

    #[test]
    fn settings_survive_being_shown_and_read_again() {
        let settings = Settings {
            slo: vec![SloSettings {
                name: "checkout".into(),
                service: "frontend".into(),
                operation: Some("GET /checkout".into()),
                percentile: 99.0,
                target_ms: 50.5,
            }],
            ..Settings::default()
        };
        let text = toml::to_string(&settings).expect("serialises");
        assert_eq!(Settings::parse(&text, "shown").expect("valid"), settings);
        let slos = settings.validate().expect("valid").slos;
        assert_eq!(slos[0].target, Micros::new(50_500));
    }

    #[test]
    fn values_that_no_deployment_can_mean_are_refused_by_key() {
        for (text, key) in [
            ("name = ''", "name"),
            ("fleet = 'a b'", "fleet"),
            ("quic = 'localhost'", "quic"),
            ("http = '1.2.3.4'", "http"),
            ("[window]\nlength_ms = 10", "window.length_ms"),
            ("[window]\nlateness_ms = 100000", "window.lateness_ms"),
            ("[learning]\nwindows_min = 1", "learning.windows_min"),
            ("[learning]\nwindows_max = 30", "learning.windows_max"),
            ("[learning]\nretrain_every_windows = 0", "learning.retrain_every_windows"),
            ("[diagnosis]\nviolated_windows = 0", "diagnosis.violated_windows"),
            ("[diagnosis]\ncalls_min = 0", "diagnosis.calls_min"),
            ("[planner]\nlease_ms = 15000", "planner.lease_ms"),
            ("[planner]\nverify_windows = 0", "planner.verify_windows"),
            ("[planner]\nhold_windows = 0", "planner.hold_windows"),
            ("[[slo]]\nname='a'\nservice='s'\npercentile=0\ntarget_ms=1", "slo.percentile"),
            ("[[slo]]\nname='a'\nservice='s'\npercentile=99\ntarget_ms=nan", "slo.target_ms"),
            ("[[slo]]\nname='a'\nservice='s s'\npercentile=99\ntarget_ms=1", "slo.service"),
            ("[[slo]]\nname=''\nservice='s'\npercentile=99\ntarget_ms=1", "slo.name"),
        ] {
            let error = validate(text).expect_err(text);
            assert!(matches!(error, ConfigError::Value { key: found, .. } if found == key), "{text}: {error}");
        }
    }

    #[test]
    fn two_objectives_may_not_share_a_name() {
        let slo = "[[slo]]\nname='a'\nservice='s'\npercentile=99\ntarget_ms=1\n";
        let error = validate(&slo.repeat(2)).expect_err("twice").to_string();
        assert!(error.contains("stands twice"), "{error}");
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = validate("[window]\nlenght_ms = 1").expect_err("unknown").to_string();
        assert!(error.contains("aggregator.toml") && error.contains("did you mean `length_ms`?"), "{error}");
    }
}
