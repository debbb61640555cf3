//! The page's plots as inline SVG: no script, no font, colours from the page's own variables, so that they follow light,
//! dark and print. Every plot has a text alternative.

use crate::calibration::Bin;
use crate::escalation::score;
use crate::metrics::Confusion;
use crate::report::Routing;
use crate::words::percent;
use std::fmt::Write as _;

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 340.0;
/// Room for the axis labels.
const LEFT: f64 = 62.0;
const BOTTOM: f64 = 42.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 24.0;

/// Maps data to the drawing: x in [0, 1], y in [0, `y_max`].
struct Frame {
    y_max: f64,
}

impl Frame {
    fn x(&self, x: f64) -> f64 {
        LEFT + x * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - (y / self.y_max).clamp(0.0, 1.0) * (HEIGHT - BOTTOM - TOP)
    }

    /// Grid, ticks and axis names.
    fn axes(&self, svg: &mut String, x_name: &str, y_name: &str, y_step: f64) {
        for i in 0..=5 {
            let (value, x) = (f64::from(i) / 5.0, self.x(f64::from(i) / 5.0));
            let (top, base) = (self.y(self.y_max), self.y(0.0));
            let _ = write!(svg, r#"<path class="grid" d="M{x:.1} {top:.1}V{base:.1}"/>"#);
            let _ = write!(
                svg,
                r#"<text class="tick" x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                base + 16.0,
                short(value)
            );
        }
        let steps = (self.y_max / y_step + 1e-9).floor() as u32;
        for i in 0..=steps {
            let value = f64::from(i) * y_step;
            let y = self.y(value);
            let _ = write!(svg, r#"<path class="grid" d="M{:.1} {y:.1}H{:.1}"/>"#, self.x(0.0), self.x(1.0));
            let _ = write!(
                svg,
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 7.0,
                y + 4.0,
                short(value)
            );
        }
        let middle = self.x(0.5);
        let _ = write!(
            svg,
            r#"<text class="axis" x="{middle:.1}" y="{:.1}" text-anchor="middle">{x_name}</text>"#,
            HEIGHT - 6.0
        );
        let half = self.y(self.y_max / 2.0);
        let _ = write!(
            svg,
            r#"<text class="axis" transform="translate(12 {half:.1}) rotate(-90)" text-anchor="middle">{y_name}</text>"#
        );
    }
}

fn short(share: f64) -> String {
    percent(share).replace(' ', "\u{202f}")
}

fn open(label: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">"#)
}

/// Accuracy against confidence, a point a bin with its interval; on the diagonal confidences mean what they say.
pub fn reliability_plot(bins: &[Bin]) -> String {
    let frame = Frame { y_max: 1.0 };
    let mut svg = open("Reliability: accuracy by confidence");
    frame.axes(&mut svg, "confidence", "accuracy", 0.2);
    let _ = write!(
        svg,
        r#"<path class="ideal" d="M{:.1} {:.1}L{:.1} {:.1}"/>"#,
        frame.x(0.0),
        frame.y(0.0),
        frame.x(1.0),
        frame.y(1.0)
    );
    for bin in bins {
        let (x, y) = (frame.x(bin.mean_confidence), frame.y(bin.accuracy));
        let _ = write!(
            svg,
            r#"<path class="whisker" d="M{x:.1} {:.1}V{:.1}"/>"#,
            frame.y(bin.interval.low),
            frame.y(bin.interval.high)
        );
        let _ = write!(
            svg,
            r#"<circle class="dot" cx="{x:.1}" cy="{y:.1}" r="4.5"><title>{} rows: confidence {}, accuracy {}</title></circle>"#,
            bin.rows,
            percent(bin.mean_confidence),
            percent(bin.accuracy)
        );
    }
    svg + "</svg>"
}

/// Share of wrong answers against share of rows served, with the threshold marked, and what a certificate promises.
pub fn risk_coverage_plot(routing: &Routing) -> String {
    let limit = routing.certificate.as_ref().map(|certificate| certificate.target.max_error);
    let highest = routing.curve.iter().map(|p| p.risk).fold(routing.served.risk.unwrap_or(0.0), f64::max);
    let highest = highest.max(limit.unwrap_or(0.0));
    let y_step = [0.01, 0.02, 0.05, 0.1, 0.2].into_iter().find(|step| highest <= 5.0 * step).unwrap_or(0.25);
    let frame = Frame { y_max: (highest / y_step).ceil().max(1.0) * y_step };
    let mut svg = open("Risk and coverage: share of wrong answers by share of rows served");
    frame.axes(&mut svg, "rows served (coverage)", "wrong among served (risk)", y_step);
    if let Some(limit) = limit {
        let y = frame.y(limit);
        let _ = write!(svg, r#"<path class="ideal" d="M{:.1} {y:.1}H{:.1}"/>"#, frame.x(0.0), frame.x(1.0));
        // Under the line where there is no room above it; on the left, where the curve is low.
        let shift = if y < frame.y(frame.y_max) + 20.0 { 16.0 } else { -6.0 };
        let _ = write!(
            svg,
            r#"<text class="callout" x="{:.1}" y="{:.1}" text-anchor="start">at most {}</text>"#,
            frame.x(0.0) + 8.0,
            y + shift,
            short(limit)
        );
    }
    let mut path = String::new();
    for (i, point) in routing.curve.iter().enumerate() {
        let _ =
            write!(path, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, frame.x(point.coverage), frame.y(point.risk));
    }
    let _ = write!(svg, r#"<path class="curve" d="{path}"/>"#);
    if let Some(risk) = routing.served.risk {
        let (x, y) = (frame.x(routing.served.coverage), frame.y(risk));
        let (anchor, shift) = if routing.served.coverage > 0.6 { ("end", -9.0) } else { ("start", 9.0) };
        let words = match &routing.certificate {
            Some(_) => format!("certified from {}", score(routing.served.threshold)),
            None => format!("threshold {}", routing.served.threshold),
        };
        let _ = write!(svg, r#"<path class="mark" d="M{x:.1} {:.1}V{:.1}"/>"#, frame.y(0.0), frame.y(frame.y_max));
        let _ = write!(svg, r#"<circle class="dot" cx="{x:.1}" cy="{y:.1}" r="5"/>"#);
        let _ = write!(
            svg,
            r#"<text class="callout" x="{:.1}" y="{:.1}" text-anchor="{anchor}">{words}</text>"#,
            x + shift,
            frame.y(frame.y_max) + 14.0
        );
    }
    svg + "</svg>"
}

/// A confusion matrix too large for figures: a square a cell, darker for a larger share of its gold row. `names` are
/// already escaped.
pub fn confusion_plot(confusion: &Confusion, names: &[String]) -> String {
    let k = confusion.counts.len();
    let cell = (720.0 / k as f64).max(4.0);
    let side = cell * k as f64;
    let mut svg = format!(
        r#"<svg class="heat" viewBox="0 0 {side:.1} {side:.1}" role="img" aria-label="Confusion matrix, gold label by row, answer by column">"#
    );
    let _ = write!(svg, r#"<rect class="heat-ground" width="{side:.1}" height="{side:.1}"/>"#);
    for (gold, row) in confusion.counts.iter().enumerate() {
        let support = confusion.support(gold).max(1) as f64;
        for (answer, &n) in row.iter().enumerate().filter(|(_, n)| **n > 0) {
            let class = if gold == answer { "right" } else { "wrong" };
            let strength = 0.25 + 0.75 * n as f64 / support;
            let _ = write!(
                svg,
                r#"<rect class="{class}" x="{:.1}" y="{:.1}" width="{cell:.1}" height="{cell:.1}" fill-opacity="{strength:.2}"><title>{n} × {} answered {}</title></rect>"#,
                answer as f64 * cell,
                gold as f64 * cell,
                names[gold],
                names[answer]
            );
        }
    }
    svg + "</svg>"
}
