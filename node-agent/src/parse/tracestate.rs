//! Sampling weight from W3C tracestate: OpenTelemetry's consistent probability threshold (`ot=th:…`).
//!
//! Source: OpenTelemetry specification, *TraceState: Probability Sampling*. `th` is a rejection threshold T of 56 bits
//! in hexadecimal with trailing zeros left out; the probability is `(2^56 - T) / 2^56`.

/// Largest weight taken from a span: one in a million. More would let a single span stand for a whole day.
pub const WEIGHT_MAX: f32 = 1e6;

const DIGITS: usize = 14;

/// How many spans one span stands for: 1 unless `tracestate` says otherwise.
pub(super) fn weight(tracestate: &str) -> f32 {
    threshold(tracestate).map_or(1.0, |threshold| {
        let kept = ((1_u64 << 56) - threshold) as f64 / (1_u64 << 56) as f64;
        (1.0 / kept).min(f64::from(WEIGHT_MAX)) as f32
    })
}

fn threshold(tracestate: &str) -> Option<u64> {
    let ot = tracestate.split(',').find_map(|member| member.trim().strip_prefix("ot="))?;
    let digits = ot.split(';').find_map(|part| part.trim().strip_prefix("th:"))?;
    let is_hex = (1..=DIGITS).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let value = is_hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()?;
    Some(value << (4 * (DIGITS - digits.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_gives_the_weight() {
        assert_eq!(weight(""), 1.0);
        assert_eq!(weight("ot=th:0"), 1.0);
        assert_eq!(weight("ot=th:8"), 2.0, "half");
        assert_eq!(weight("vendor=x, ot=rv:6e6d1a75832a2f;th:c"), 4.0, "a quarter");
        assert!((weight("ot=th:fd70a3d70a3d71") - 100.0).abs() < 0.01, "one in a hundred");
    }

    #[test]
    fn a_hostile_threshold_is_bounded_or_ignored() {
        assert_eq!(weight("ot=th:ffffffffffffff"), WEIGHT_MAX);
        for bad in ["ot=th:", "ot=th:xyz", "ot=th:ffffffffffffffff", "ot=th:+8", "th:8", "ot"] {
            assert_eq!(weight(bad), 1.0, "{bad}");
        }
    }
}
