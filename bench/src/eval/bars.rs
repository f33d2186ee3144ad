//! A bar chart as inline SVG: one bar per line from zero, with its interval.

use std::fmt::Write as _;

use crate::report::escape;

const WIDTH: f64 = 1080.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 12.0;
const LINE: f64 = 20.0;
const BOTTOM: f64 = 28.0;

/// Lines of the grid, from zero.
const TICKS: usize = 4;

/// One line.
pub struct Bar {
    /// What stands left of it.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Whether it is drawn in Sage's colour.
    pub is_sage: bool,
}

/// The chart of `bars`, as far as they are finite; shares are drawn against 1.
pub fn bars(bars: &[Bar], title: &str) -> String {
    let bars: Vec<&Bar> = bars.iter().filter(|bar| bar.value.is_finite()).collect();
    let highest = bars.iter().map(|bar| bar.value.max(bar.high)).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let scale = if highest <= 1.0 { 1.0 } else { highest * 1.05 };
    let x = |value: f64| LEFT + (value.max(0.0) / scale).min(1.0) * (WIDTH - LEFT - RIGHT);
    let height = TOP + LINE * bars.len() as f64 + BOTTOM;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">", escape(title));
    for tick in 0..=TICKS {
        let value = scale * tick as f64 / TICKS as f64;
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1:.1}\"/><text class=\"tick\" x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\">{value:.2}</text>",
            x(value),
            height - BOTTOM,
            height - 10.0,
        );
    }
    for (line, bar) in bars.iter().enumerate() {
        let y = TOP + LINE * line as f64;
        let class = if bar.is_sage { "bar sage" } else { "bar" };
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect class=\"{class}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\"/>\
             <line class=\"range\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{3:.1}\" y2=\"{3:.1}\" transform=\"translate(0 6)\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{:.3}</text>",
            LEFT - 8.0,
            y + 14.0,
            escape(&bar.name),
            y + 4.0,
            x(bar.value) - LEFT,
            x(bar.low),
            x(bar.high),
            x(bar.value.max(bar.high)) + 6.0,
            y + 14.0,
            bar.value,
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_bar_stands_for_a_larger_share_and_nothing_is_drawn_for_none() {
        let bar = |value: f64| Bar { name: "a<b".into(), value, low: value, high: value, is_sage: true };
        let width = |value: f64| {
            let svg = bars(&[bar(value)], "t");
            let rect = svg.split("<rect").nth(1).expect("a bar");
            rect.split("width=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<f64>().ok()).expect("a width")
        };
        assert!((width(0.5) - 330.0).abs() < 0.1 && (width(1.0) - 660.0).abs() < 0.1);
        let svg = bars(&[bar(f64::NAN), bar(0.2)], "t");
        assert_eq!(svg.matches("<rect").count(), 1);
        assert!(svg.contains("a&lt;b"));
    }
}
