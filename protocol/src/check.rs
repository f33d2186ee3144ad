//! What a window must be, beyond its types, before it may leave an agent or enter an aggregator: finite, sorted, bounded.
//!
//! It does not judge whether the numbers are plausible, nor whether clocks agree: that is the owner's business.

use sage_common::{
    EntryHistogram, InstanceUsage, KnobOffer, LatencySeries, Metric, MetricValue, Micros, NodeWindow, Setting, Skeleton,
};
use thiserror::Error;

/// Latency series of a node: twice the agent's own cardinality guard, three kinds each.
pub const LATENCIES_MAX: usize = 12_000;
/// Instances on a node: the kernel's readers are built for 2,000 cgroups.
pub const INSTANCES_MAX: usize = 2_000;
/// Stubs of a window: 512 traces of 32 spans on one node.
pub const STUBS_MAX: usize = 16_384;
/// Call structures of a window: as many operations as the agent's cardinality guard lets through.
pub const SKELETONS_MAX: usize = 2_000;
/// Calls, branches and groups of one call structure together.
pub const SKELETON_PARTS_MAX: usize = 1_024;
/// Entry operations of a node.
pub const ENTRIES_MAX: usize = 256;
/// Bytes of one histogram: 2 significant digits over an hour of microseconds take 20 KiB uncompressed.
pub const HISTOGRAM_BYTES_MAX: usize = 32 << 10;
/// Knobs of a node: a few for each instance.
pub const OFFERS_MAX: usize = 8_000;
/// The longest window: one hour.
pub const LENGTH_MAX: Micros = Micros::from_secs(3_600);
/// The highest count of calls in one window, far above what one machine can serve in [`LENGTH_MAX`].
pub const CALLS_MAX: f32 = 1e12;

/// Why a window is not usable.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum InvalidWindow {
    /// More entries than any agent sends.
    #[error("{len} {what} are more than the {max} allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        len: usize,
        /// The most allowed.
        max: usize,
    },
    /// A number that is not finite, or outside its range.
    #[error("{what} of {of} is out of range")]
    Number {
        /// Which number.
        what: &'static str,
        /// Of which service, metric or node.
        of: String,
    },
    /// Percentiles that are not finite, or not sorted.
    #[error("percentiles of {of} are not finite and sorted")]
    Quantiles {
        /// Of which series or metric.
        of: String,
    },
    /// The same metric twice for one instance.
    #[error("{metric} is given twice for {of}")]
    Repeated {
        /// The metric.
        metric: &'static str,
        /// The instance or node.
        of: String,
    },
    /// The interval is empty, absurdly long, or not aligned.
    #[error("an interval of {length} from {start_micros} us is not a window")]
    Interval {
        /// Its length.
        length: Micros,
        /// Its start, in microseconds since the epoch of the node's clock.
        start_micros: u64,
    },
    /// A setting that does not belong to its knob.
    #[error("{setting} does not fit {knob}")]
    Setting {
        /// The knob.
        knob: String,
        /// The setting.
        setting: String,
    },
}

/// Whether `window` may enter an aggregator.
///
/// # Errors
///
/// The first thing found wrong, as [`InvalidWindow`].
pub fn check_window(window: &NodeWindow) -> Result<(), InvalidWindow> {
    let node = || window.key.node.to_string();
    check_interval(window)?;
    bounded("latency series", &window.latencies, LATENCIES_MAX)?;
    bounded("instances", &window.usage, INSTANCES_MAX)?;
    bounded("stubs", &window.stubs, STUBS_MAX)?;
    bounded("call structures", &window.skeletons, SKELETONS_MAX)?;
    bounded("entry operations", &window.entries, ENTRIES_MAX)?;
    bounded("knob offers", &window.offers, OFFERS_MAX)?;
    window.latencies.iter().try_for_each(check_series)?;
    window.usage.iter().try_for_each(check_instance)?;
    check_metrics(&window.node_usage, node)?;
    window.skeletons.iter().try_for_each(check_skeleton)?;
    window.entries.iter().try_for_each(check_entry)?;
    window.offers.iter().try_for_each(check_offer)?;
    within("share of sampled traces", window.stub_share, 1.0, node)
}

fn check_interval(window: &NodeWindow) -> Result<(), InvalidWindow> {
    let NodeWindow { start, length, .. } = window;
    if *length == Micros::ZERO || *length > LENGTH_MAX || start.aligned(*length) != *start {
        return Err(InvalidWindow::Interval { length: *length, start_micros: start.as_micros() });
    }
    Ok(())
}

fn check_series(series: &LatencySeries) -> Result<(), InvalidWindow> {
    let of = || format!("{} {}", series.service, series.operation);
    within("calls", series.calls, CALLS_MAX, of)?;
    within("errors", series.errors, CALLS_MAX, of)?;
    if !series.quantiles.is_valid() {
        return Err(InvalidWindow::Quantiles { of: of() });
    }
    Ok(())
}

fn check_instance(usage: &InstanceUsage) -> Result<(), InvalidWindow> {
    check_metrics(&usage.metrics, || format!("{} {}", usage.service, usage.instance))
}

fn check_metrics(metrics: &[MetricValue], of: impl Fn() -> String) -> Result<(), InvalidWindow> {
    bounded("metrics", metrics, Metric::COUNT)?;
    let mut is_seen = [false; Metric::COUNT];
    for MetricValue { metric, quantiles } in metrics {
        if std::mem::replace(&mut is_seen[metric.index()], true) {
            return Err(InvalidWindow::Repeated { metric: metric.name(), of: of() });
        }
        if !quantiles.is_valid() {
            return Err(InvalidWindow::Quantiles { of: format!("{} of {}", metric.name(), of()) });
        }
    }
    Ok(())
}

fn check_skeleton(skeleton: &Skeleton) -> Result<(), InvalidWindow> {
    let branches = || skeleton.groups.iter().flatten();
    let parts = skeleton.groups.len() + branches().count() + branches().map(Vec::len).sum::<usize>();
    if parts > SKELETON_PARTS_MAX {
        return Err(InvalidWindow::TooMany { what: "parts of a call structure", len: parts, max: SKELETON_PARTS_MAX });
    }
    Ok(())
}

fn check_entry(entry: &EntryHistogram) -> Result<(), InvalidWindow> {
    bounded("bytes of a histogram", &entry.v2, HISTOGRAM_BYTES_MAX)?;
    within("errors", entry.errors, CALLS_MAX, || format!("{} {}", entry.service, entry.operation))
}

fn check_offer(offer: &KnobOffer) -> Result<(), InvalidWindow> {
    let KnobOffer { knob, current, lowest, highest, .. } = offer;
    let misfit = [Some(current), lowest.as_ref(), highest.as_ref()].into_iter().flatten().find(|s| !s.fits(knob));
    misfit.map_or(Ok(()), |setting: &Setting| {
        Err(InvalidWindow::Setting { knob: knob.to_string(), setting: setting.to_string() })
    })
}

fn bounded<T>(what: &'static str, list: &[T], max: usize) -> Result<(), InvalidWindow> {
    if list.len() > max { Err(InvalidWindow::TooMany { what, len: list.len(), max }) } else { Ok(()) }
}

/// `0 <= number <= max`, which no NaN is.
fn within(what: &'static str, number: f32, max: f32, of: impl Fn() -> String) -> Result<(), InvalidWindow> {
    if (0.0..=max).contains(&number) { Ok(()) } else { Err(InvalidWindow::Number { what, of: of() }) }
}
