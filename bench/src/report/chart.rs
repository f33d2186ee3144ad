//! A chart over time as inline SVG: lines on a logarithmic latency axis, shaded spans, marked moments.

use std::fmt::Write;

const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 40.0;
/// Width and height of a letter of a caption, about.
const CAPTION_LETTER: f64 = 7.6;
const CAPTION_HEIGHT: f64 = 15.0;
/// Rows of captions above the chart.
const CAPTION_ROWS: usize = 2;

/// A chart being drawn. Times in seconds, latencies in milliseconds.
pub struct Chart {
    svg: String,
    until: f64,
    low: f64,
    high: f64,
    /// Where the last caption of each row ends, the lowest row first.
    captions_end: [f64; CAPTION_ROWS],
}

impl Chart {
    /// An empty chart from 0 to `until` seconds and for latencies from `low` to `high`.
    pub fn new(until: f64, low: f64, high: f64, title: &str) -> Self {
        let low = low.max(0.1);
        let captions_end = [0.0; CAPTION_ROWS];
        let mut chart =
            Self { svg: String::new(), until: until.max(1.0), low, high: high.max(low * 2.0), captions_end };
        chart.push(&format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(title)));
        chart.axes();
        chart
    }

    fn push(&mut self, text: &str) {
        self.svg.push_str(text);
        self.svg.push('\n');
    }

    fn x(&self, at: f64) -> f64 {
        LEFT + (at / self.until).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, latency_ms: f64) -> f64 {
        let share = (latency_ms.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn axes(&mut self) {
        let decades = [1.0, 2.0, 5.0];
        let ticks = (-1..6)
            .flat_map(|power| decades.map(|step| step * 10_f64.powi(power)))
            .filter(|v| *v >= self.low && *v <= self.high);
        for value in ticks.collect::<Vec<_>>() {
            let y = self.y(value);
            self.push(&format!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            ));
            self.push(&format!(
                "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value} ms</text>",
                LEFT - 6.0,
                y + 4.0
            ));
        }
        let step = [10.0, 30.0, 60.0, 120.0, 300.0].into_iter().find(|step| self.until / step < 14.0).unwrap_or(600.0);
        let mut at = 0.0;
        while at <= self.until {
            let x = self.x(at);
            self.push(&format!(
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{at:.0} s</text>",
                HEIGHT - 16.0
            ));
            at += step;
        }
    }

    /// A shaded span with a caption above it, in the row of captions that leaves it room.
    pub fn span(&mut self, from: f64, to: f64, class: &str, caption: &str) {
        let (x0, x1) = (self.x(from), self.x(to));
        let width = CAPTION_LETTER * caption.chars().count() as f64;
        let left = (x0 + 3.0).min(WIDTH - RIGHT - width).max(0.0);
        let row = self.captions_end.iter().position(|end| *end < left).unwrap_or(0);
        self.captions_end[row] = left + width + CAPTION_LETTER;
        self.push(&format!(
            "<rect class=\"{class}\" x=\"{x0:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"/>",
            x1 - x0,
            HEIGHT - TOP - BOTTOM
        ));
        self.push(&format!(
            "<text class=\"caption\" x=\"{left:.1}\" y=\"{}\">{}</text>",
            TOP - 8.0 - CAPTION_HEIGHT * row as f64,
            escape(caption)
        ));
    }

    /// A horizontal line.
    pub fn level(&mut self, latency_ms: f64, class: &str) {
        let y = self.y(latency_ms);
        self.push(&format!(
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            WIDTH - RIGHT
        ));
    }

    /// A vertical line with a tooltip.
    pub fn moment(&mut self, at: f64, class: &str, tooltip: &str) {
        let x = self.x(at);
        self.push(&format!(
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{}\"><title>{}</title></line>",
            HEIGHT - BOTTOM,
            escape(tooltip)
        ));
    }

    /// A line through `(seconds, milliseconds)`.
    pub fn line(&mut self, points: impl Iterator<Item = (f64, f64)>, class: &str) {
        let mut path = String::new();
        for (at, latency_ms) in points.filter(|(_, latency_ms)| latency_ms.is_finite()) {
            // Writing to a string cannot fail.
            let _ =
                write!(path, "{}{:.1},{:.1}", if path.is_empty() { "M" } else { " L" }, self.x(at), self.y(latency_ms));
        }
        self.push(&format!("<path class=\"{class}\" d=\"{path}\"/>"));
    }

    /// The finished drawing.
    pub fn finish(mut self) -> String {
        self.push("</svg>");
        self.svg
    }
}

/// Text that is safe inside HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_latency_is_drawn_higher_and_later_time_further_right() {
        let chart = Chart::new(100.0, 1.0, 1000.0, "t");
        assert!(chart.y(100.0) < chart.y(10.0));
        assert!(chart.x(50.0) > chart.x(10.0));
        assert!((chart.y(1.0) - (HEIGHT - BOTTOM)).abs() < 1e-9 && (chart.y(1000.0) - TOP).abs() < 1e-9);
    }

    #[test]
    fn captions_of_neighbours_stand_in_different_rows_and_inside_the_picture() {
        let mut chart = Chart::new(100.0, 1.0, 1000.0, "t");
        chart.span(50.0, 60.0, "fault", "network:home-timeline-service");
        let first = chart.captions_end[0];
        chart.span(62.0, 70.0, "fault", "cpu:post-storage-service");
        assert!(chart.captions_end[0] == first && chart.captions_end[1] > 0.0);
        chart.span(98.0, 100.0, "fault", "slow:post-storage-service");
        assert!(chart.captions_end.iter().all(|end| *end <= WIDTH));
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
