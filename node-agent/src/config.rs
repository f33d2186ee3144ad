//! `/etc/sage/agent.toml`: [`Settings`] as written, [`Config`] as used. Pure; the file is read by [`crate::cli`].

use std::{net::SocketAddr, path::PathBuf};

use sage_common::{CgroupPath, ConfigError, LinkName, Micros, NodeId, ServiceId, config};
use serde::{Deserialize, Serialize};

use crate::core::usage::{Glob, Rule, Rules};

/// Every key with its default and what it means, as `sage-agent config default` prints it.
pub const DEFAULT_TOML: &str = include_str!("agent.default.toml");

/// Shortest window: ten samples a percentile grid are too few already, one a second gives one.
pub const WINDOW_MS_MIN: u64 = 1_000;
/// Longest window: an hour.
pub const WINDOW_MS_MAX: u64 = 3_600_000;
/// Naming rules accepted: each is tried against every cgroup found.
pub const RULES_MAX: usize = 1_000;

/// The file as written. Every key has a default that works on one machine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Name of this node; the host name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Directory of durable state.
    pub state_dir: PathBuf,
    /// Unix socket of the daemon.
    pub socket: PathBuf,
    /// Append-only audit.
    pub audit_file: PathBuf,
    /// Directory of policy files.
    pub policy_dir: PathBuf,
    /// Address of `/metrics`; empty for none.
    pub http: String,
    /// Observation windows.
    pub window: WindowSettings,
    /// Span intake.
    pub intake: IntakeSettings,
    /// Aggregators.
    pub aggregators: AggregatorSettings,
    /// Certificates.
    pub tls: TlsConfig,
    /// On-disk spool.
    pub spool: SpoolSettings,
    /// Kernel interfaces.
    pub kernel: KernelSettings,
    /// Naming rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceSettings>,
}

/// `[window]`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WindowSettings {
    /// Length.
    pub length_ms: u64,
    /// Wait for late spans after the end.
    pub lateness_ms: u64,
}

/// `[intake]`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct IntakeSettings {
    /// OTLP over gRPC; empty for none.
    pub otlp_grpc: String,
    /// OTLP over HTTP; empty for none.
    pub otlp_http: String,
    /// Jaeger compact thrift over UDP; empty for none.
    pub jaeger_udp: String,
    /// Traces sampled per window.
    pub sample_traces: usize,
    /// Latency series per window.
    pub series_max: usize,
}

/// `[aggregators]`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AggregatorSettings {
    /// `host:port` of each.
    pub addresses: Vec<String>,
}

/// `[tls]`: PEM files.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The fleet's CA.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// `[spool]`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolSettings {
    /// Bytes kept at most.
    pub bytes_max: u64,
}

/// `[kernel]`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct KernelSettings {
    /// Root of the cgroup hierarchies.
    pub cgroup_root: PathBuf,
    /// Root of procfs.
    pub proc_root: PathBuf,
    /// Links to measure; all but loopback when empty.
    pub links: Vec<String>,
    /// Block devices to measure; all when empty.
    pub disks: Vec<String>,
    /// The cgroup that stands for the node; empty for the whole machine.
    pub node_cgroup: String,
}

/// One entry of `[[services]]`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// Pattern of cgroup paths.
    pub cgroup: String,
    /// The service they belong to.
    pub service: ServiceId,
}

/// A configuration that cannot be wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of this node.
    pub node: NodeId,
    /// Directory of durable state.
    pub state_dir: PathBuf,
    /// Unix socket of the daemon.
    pub socket: PathBuf,
    /// Append-only audit.
    pub audit_file: PathBuf,
    /// Directory of policy files.
    pub policy_dir: PathBuf,
    /// Address of `/metrics`.
    pub http: Option<SocketAddr>,
    /// Length of a window.
    pub window: Micros,
    /// Wait for late spans after its end.
    pub lateness: Micros,
    /// Span intake.
    pub intake: IntakeConfig,
    /// `host:port` of each aggregator.
    pub aggregators: Vec<String>,
    /// Certificates.
    pub tls: TlsConfig,
    /// Bytes of windows kept at most.
    pub spool_bytes_max: u64,
    /// Kernel interfaces.
    pub kernel: KernelConfig,
    /// Naming rules.
    pub rules: Rules,
}

/// Where spans come in; `None` is turned off.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IntakeConfig {
    /// OTLP over gRPC.
    pub otlp_grpc: Option<SocketAddr>,
    /// OTLP over HTTP.
    pub otlp_http: Option<SocketAddr>,
    /// Jaeger compact thrift over UDP.
    pub jaeger_udp: Option<SocketAddr>,
    /// Traces sampled per window.
    pub sample_traces: usize,
    /// Latency series per window.
    pub series_max: usize,
}

/// What of the kernel is looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KernelConfig {
    /// Root of the cgroup hierarchies.
    pub cgroup_root: PathBuf,
    /// Root of procfs.
    pub proc_root: PathBuf,
    /// Links to measure; all but loopback when empty.
    pub links: Vec<LinkName>,
    /// Block devices to measure; all when empty.
    pub disks: Vec<String>,
    /// The cgroup that stands for the node.
    pub node_cgroup: Option<CgroupPath>,
}

impl Settings {
    /// Reads `text`; `origin` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Syntax`] for what is not TOML, of a wrong type, or an unknown key.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        config::parse(text, origin)
    }

    /// The only way to make a [`Config`]; `host` names the node where the file does not.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] for the first key that no deployment can mean.
    pub fn validate(self, host: &str) -> Result<Config, ConfigError> {
        let node = match self.node {
            Some(name) => checked("node", &name, "want 1 to 63 letters, digits, '-', '_' or '.'")?,
            None => NodeId::sanitized(host),
        };
        let window = within("window.length_ms", self.window.length_ms, WINDOW_MS_MIN, WINDOW_MS_MAX)?;
        let lateness = within("window.lateness_ms", self.window.lateness_ms, 0, self.window.length_ms.max(60_000))?;
        for address in &self.aggregators.addresses {
            check_host_port(address)?;
        }
        Ok(Config {
            node,
            state_dir: absolute("state_dir", self.state_dir)?,
            socket: absolute("socket", self.socket)?,
            audit_file: absolute("audit_file", self.audit_file)?,
            policy_dir: absolute("policy_dir", self.policy_dir)?,
            http: address("http", &self.http)?,
            window: Micros::from_millis(window),
            lateness: Micros::from_millis(lateness),
            intake: self.intake.validate()?,
            aggregators: self.aggregators.addresses,
            tls: self.tls,
            // Below 1 MiB not even one large window fits.
            spool_bytes_max: within("spool.bytes_max", self.spool.bytes_max, 1 << 20, 1 << 40)?,
            kernel: self.kernel.validate()?,
            rules: rules(self.services)?,
        })
    }
}

impl IntakeSettings {
    fn validate(self) -> Result<IntakeConfig, ConfigError> {
        Ok(IntakeConfig {
            otlp_grpc: address("intake.otlp_grpc", &self.otlp_grpc)?,
            otlp_http: address("intake.otlp_http", &self.otlp_http)?,
            jaeger_udp: address("intake.jaeger_udp", &self.jaeger_udp)?,
            // Stubs of 65,536 traces would no longer fit into one window message.
            sample_traces: within("intake.sample_traces", self.sample_traces, 1, 65_536)?,
            // 100,000 histograms of 10 KB are a gigabyte.
            series_max: within("intake.series_max", self.series_max, 1, 100_000)?,
        })
    }
}

impl KernelSettings {
    fn validate(self) -> Result<KernelConfig, ConfigError> {
        let link = |name: String| {
            LinkName::try_from(name).map_err(|error| value("kernel.links", &error.text, "is not a name of a link"))
        };
        let node_cgroup = (!self.node_cgroup.is_empty())
            .then(|| CgroupPath::try_from(self.node_cgroup))
            .transpose()
            .map_err(|error| value("kernel.node_cgroup", &error.text, "want a path below the root, without '..'"))?;
        Ok(KernelConfig {
            cgroup_root: absolute("kernel.cgroup_root", self.cgroup_root)?,
            proc_root: absolute("kernel.proc_root", self.proc_root)?,
            links: self.links.into_iter().map(link).collect::<Result<_, _>>()?,
            disks: self.disks,
            node_cgroup,
        })
    }
}

fn rules(services: Vec<ServiceSettings>) -> Result<Rules, ConfigError> {
    if services.len() > RULES_MAX {
        return Err(value("services", &services.len().to_string(), "want at most 1000 rules"));
    }
    if let Some(bad) = services.iter().find(|rule| rule.cgroup.trim_matches('/').is_empty()) {
        return Err(value("services.cgroup", &bad.cgroup, "the root cgroup is no service"));
    }
    let rule = |s: ServiceSettings| Rule { cgroup: Glob::new(&s.cgroup), service: s.service };
    Ok(Rules(services.into_iter().map(rule).collect()))
}

fn value(key: &'static str, value: &str, problem: &'static str) -> ConfigError {
    ConfigError::Value { key, value: format!("{value:?}"), problem }
}

fn checked<T: std::str::FromStr>(key: &'static str, text: &str, problem: &'static str) -> Result<T, ConfigError> {
    text.parse().map_err(|_| value(key, text, problem))
}

fn address(key: &'static str, text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if text.is_empty() { Ok(None) } else { checked(key, text, "want IP:PORT, or \"\" to turn it off").map(Some) }
}

fn check_host_port(address: &str) -> Result<(), ConfigError> {
    let is_valid = address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if is_valid { Ok(()) } else { Err(value("aggregators.addresses", address, "want HOST:PORT, the port is 7443")) }
}

fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(value(key, &path.to_string_lossy(), "want an absolute path: a daemon has no directory of its own"))
    }
}

fn within<T: Copy + PartialOrd + std::fmt::Display>(
    key: &'static str,
    number: T,
    least: T,
    most: T,
) -> Result<T, ConfigError> {
    if number >= least && number <= most {
        return Ok(number);
    }
    let problem = if number < least { "is too small" } else { "is too large" };
    Err(ConfigError::Value { key, value: number.to_string(), problem })
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node: None,
            state_dir: "/var/lib/sage/agent".into(),
            socket: "/run/sage/agent.sock".into(),
            audit_file: "/var/log/sage/audit.jsonl".into(),
            policy_dir: "/etc/sage/policy.d".into(),
            http: "127.0.0.1:7481".to_owned(),
            window: WindowSettings::default(),
            intake: IntakeSettings::default(),
            aggregators: AggregatorSettings::default(),
            tls: TlsConfig::default(),
            spool: SpoolSettings::default(),
            kernel: KernelSettings::default(),
            services: Vec::new(),
        }
    }
}

impl Default for WindowSettings {
    fn default() -> Self {
        Self { length_ms: 10_000, lateness_ms: 6_000 }
    }
}

impl Default for IntakeSettings {
    fn default() -> Self {
        Self {
            otlp_grpc: "127.0.0.1:4317".to_owned(),
            otlp_http: "127.0.0.1:4318".to_owned(),
            jaeger_udp: "127.0.0.1:6831".to_owned(),
            sample_traces: 512,
            series_max: 2_000,
        }
    }
}

impl Default for AggregatorSettings {
    fn default() -> Self {
        Self { addresses: vec!["127.0.0.1:7443".to_owned()] }
    }
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            ca: "/etc/sage/pki/ca.pem".into(),
            cert: "/etc/sage/pki/agent.pem".into(),
            key: "/etc/sage/pki/agent.key".into(),
        }
    }
}

impl Default for SpoolSettings {
    fn default() -> Self {
        Self { bytes_max: 64 << 20 }
    }
}

impl Default for KernelSettings {
    fn default() -> Self {
        Self {
            cgroup_root: "/sys/fs/cgroup".into(),
            proc_root: "/proc".into(),
            links: Vec::new(),
            disks: Vec::new(),
            node_cgroup: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, ConfigError> {
        Settings::parse(text, "agent.toml")?.validate("host-1")
    }

    #[test]
    fn the_commented_default_file_is_the_defaults() {
        assert_eq!(Settings::parse(DEFAULT_TOML, "default"), Ok(Settings::default()));
        assert_eq!(config("").expect("valid").node.as_str(), "host-1");
    }

    #[test]
    fn every_key_stands_in_the_default_file() {
        let shown = toml::to_string(&Settings::default()).expect("plain data");
        for key in shown.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
            assert!(DEFAULT_TOML.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_as_itself() {
        let text = "node = \"n\"\n[window]\nlength_ms = 2000\n[[services]]\ncgroup = \"a/*\"\nservice = \"s\"";
        let settings = Settings::parse(text, "agent.toml").expect("valid");
        let shown = toml::to_string(&settings).expect("plain data");
        assert_eq!(Settings::parse(&shown, "shown"), Ok(settings));
    }

    #[test]
    fn values_that_no_deployment_can_mean_name_their_key() {
        let cases = [
            ("node = \"a b\"", "node"),
            ("[window]\nlength_ms = 999", "window.length_ms"),
            ("[window]\nlateness_ms = 99999999", "window.lateness_ms"),
            ("http = \"7481\"", "http"),
            ("[intake]\notlp_grpc = \"nowhere\"", "intake.otlp_grpc"),
            ("[intake]\nsample_traces = 0", "intake.sample_traces"),
            ("[aggregators]\naddresses = [\"host\"]", "aggregators.addresses"),
            ("state_dir = \"state\"", "state_dir"),
            ("[spool]\nbytes_max = 10", "spool.bytes_max"),
            ("[kernel]\nlinks = [\"a/b\"]", "kernel.links"),
            ("[kernel]\nnode_cgroup = \"../x\"", "kernel.node_cgroup"),
            ("[[services]]\ncgroup = \"/\"\nservice = \"a\"", "services.cgroup"),
        ];
        for (text, key) in cases {
            let message = config(text).expect_err(text).to_string();
            assert!(message.starts_with(key), "{text}: {message}");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_the_nearest() {
        let message = config("[window]\nlenght_ms = 1000").expect_err("unknown").to_string();
        assert!(message.contains("did you mean `length_ms`?"), "{message}");
    }

    #[test]
    fn an_empty_address_turns_an_intake_off() {
        assert_eq!(config("[intake]\njaeger_udp = \"\"").expect("valid").intake.jaeger_udp, None);
    }
}
