//! A plot in character cells: axes with round ticks, raw values as dots, a line in braille (two by four dots a cell) and
//! single marks. What each glyph is needs no colour to be told.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthStr;

/// What is plotted, painted in this order: the later over the earlier.
pub struct Plot<'a> {
    /// One `·` each.
    pub dots: &'a [(f64, f64)],
    /// Joined.
    pub line: &'a [(f64, f64)],
    /// One `×` each.
    pub marks: &'a [(f64, f64)],
    /// Both ends of the x axis.
    pub x: (f64, f64),
    /// y in decades; what is not above zero is left out.
    pub log: bool,
    pub dot_style: Style,
    pub line_style: Style,
    pub mark_style: Style,
}

/// Bits of a braille cell, by row and column.
const BRAILLE: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];

impl Plot<'_> {
    /// Paints into `area`; nothing where it is too small for a plot.
    pub fn paint(&self, area: Rect, buffer: &mut Buffer) {
        if self.log {
            let decades = |list: &[(f64, f64)]| list.iter().map(|(x, y)| (*x, y.log10())).collect::<Vec<_>>();
            let (dots, line, marks) = (decades(self.dots), decades(self.line), decades(self.marks));
            return Plot { dots: &dots, line: &line, marks: &marks, ..*self }.paint_values(area, buffer);
        }
        self.paint_values(area, buffer)
    }

    fn paint_values(&self, area: Rect, buffer: &mut Buffer) {
        let Some((low, high)) = self.bounds() else { return };
        let rows = area.height.saturating_sub(2);
        if rows < 2 || area.width < 16 {
            return;
        }
        let ticks = match self.log {
            true => decade_ticks(low, high, usize::from(rows / 2).clamp(2, 8)),
            false => labelled(&ticks(low, high, usize::from(rows / 3).clamp(2, 6))),
        };
        let gutter = ticks.iter().map(|(_, label)| label.width()).max().unwrap_or(1) as u16 + 1;
        if area.width < gutter + 8 {
            return;
        }
        let inner = Rect { x: area.x + gutter + 1, y: area.y, width: area.width - gutter - 1, height: rows };
        for y in 0..rows {
            put(buffer, area.x + gutter, area.y + y, "│", Style::new());
        }
        let view = View { x: self.x, y: (low, high), inner };
        for (tick, label) in &ticks {
            let Some(y) = view.row(*tick) else { continue };
            let indent = gutter - label.width() as u16 - 1;
            put(buffer, area.x + indent, y, label, Style::new());
            put(buffer, area.x + gutter, y, "┤", Style::new());
        }
        self.x_axis(area, gutter, rows, buffer);
        for &(x, y) in self.dots {
            if let Some((column, row, beyond)) = view.cell(x, y) {
                let glyph = [("·", Beyond::No), ("˄", Beyond::Above), ("˅", Beyond::Below)];
                let glyph = glyph.into_iter().find(|(_, of)| *of == beyond).map_or("·", |(glyph, _)| glyph);
                put(buffer, column, row, glyph, self.dot_style);
            }
        }
        self.braille(&view, buffer);
        for &(x, y) in self.marks {
            if let Some((column, row, _)) = view.cell(x, y) {
                put(buffer, column, row, "×", self.mark_style);
            }
        }
    }

    /// From the least to the greatest of line and marks, and of all dots but the highest and the lowest hundredth: one step
    /// that went wrong must not press the curve flat.
    fn bounds(&self) -> Option<(f64, f64)> {
        let finite = |list: &[(f64, f64)]| -> Vec<f64> {
            list.iter().filter(|(x, y)| x.is_finite() && y.abs() < 1e30).map(|(_, y)| *y).collect()
        };
        let mut dots = finite(self.dots);
        dots.sort_by(f64::total_cmp);
        let few = dots.len() / 100;
        let all = dots[few..dots.len() - few].iter().copied().chain(finite(self.line)).chain(finite(self.marks));
        let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), y| (low.min(y), high.max(y)));
        match (high - low) > high.abs().max(low.abs()) * 1e-9 {
            true => Some((low, high)),
            false if low <= high => {
                let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
                Some((low - room, high + room))
            }
            false => None,
        }
    }

    fn x_axis(&self, area: Rect, gutter: u16, rows: u16, buffer: &mut Buffer) {
        let y = area.y + rows;
        let width = area.width - gutter - 1;
        put(buffer, area.x + gutter, y, &format!("└{}", "─".repeat(width.into())), Style::new());
        let text = |x: f64| crate::progress::count(x.max(0.0).round() as u64);
        let (from, to) = (text(self.x.0), text(self.x.1));
        put(buffer, area.x + gutter + 1, y + 1, &from, Style::new());
        let to = format!("step {to}");
        if from.width() + to.width() + 1 < width.into() {
            put(buffer, area.right() - to.width() as u16, y + 1, &to, Style::new());
        }
    }

    /// The line, dot by dot, from each point to the next.
    fn braille(&self, view: &View, buffer: &mut Buffer) {
        let inner = view.inner;
        let (width, height) = (usize::from(inner.width), usize::from(inner.height));
        let mut cells = vec![0u8; width * height];
        let fine = |&(x, y): &(f64, f64)| {
            let (u, v) = (view.across(x)?, view.down(y)?);
            Some((u * (width * 2 - 1) as f64, v.clamp(0.0, 1.0) * (height * 4 - 1) as f64))
        };
        let points: Vec<(f64, f64)> = self.line.iter().filter_map(fine).collect();
        let mut dot = |x: f64, y: f64| {
            let (x, y) = (x.round() as usize, y.round() as usize);
            if let Some(cell) = cells.get_mut(y / 4 * width + x / 2) {
                *cell |= BRAILLE[y % 4][x % 2];
            }
        };
        if let [(x, y)] = points[..] {
            dot(x, y);
        }
        for pair in points.windows(2) {
            let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
            let n = (x1 - x0).abs().max((y1 - y0).abs()).ceil().max(1.0);
            for i in 0..=n as usize {
                let t = i as f64 / n;
                dot(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t);
            }
        }
        for (i, bits) in cells.into_iter().enumerate().filter(|(_, bits)| *bits != 0) {
            let glyph = char::from_u32(0x2800 + u32::from(bits)).unwrap_or(' ');
            let (x, y) = (inner.x + (i % width) as u16, inner.y + (i / width) as u16);
            put(buffer, x, y, glyph.encode_utf8(&mut [0; 4]), self.line_style);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Beyond {
    No,
    Above,
    Below,
}

/// Where values lie.
struct View {
    x: (f64, f64),
    y: (f64, f64),
    inner: Rect,
}

impl View {
    /// From 0 at the left to 1 at the right; none beyond.
    fn across(&self, x: f64) -> Option<f64> {
        let u = if self.x.1 > self.x.0 { (x - self.x.0) / (self.x.1 - self.x.0) } else { 0.0 };
        (0.0..=1.0).contains(&u).then_some(u)
    }

    /// From 0 at the top to 1 at the bottom, and beyond.
    fn down(&self, y: f64) -> Option<f64> {
        let v = (self.y.1 - y) / (self.y.1 - self.y.0);
        v.is_finite().then_some(v)
    }

    fn row(&self, y: f64) -> Option<u16> {
        let v = self.down(y).filter(|v| (-1e-9..=1.0 + 1e-9).contains(v))?;
        Some(self.inner.y + (v.clamp(0.0, 1.0) * f64::from(self.inner.height - 1)).round() as u16)
    }

    /// Column, row, and whether the value lies beyond the plot.
    fn cell(&self, x: f64, y: f64) -> Option<(u16, u16, Beyond)> {
        let u = self.across(x)?;
        let v = if y == f64::INFINITY { -1.0 } else { self.down(y)? };
        let column = self.inner.x + (u * f64::from(self.inner.width - 1)).round() as u16;
        let row = self.inner.y + (v.clamp(0.0, 1.0) * f64::from(self.inner.height - 1)).round() as u16;
        let beyond = match v {
            v if v < 0.0 => Beyond::Above,
            v if v > 1.0 => Beyond::Below,
            _ => Beyond::No,
        };
        Some((column, row, beyond))
    }
}

/// Round values (1, 2 or 5 times a power of ten apart) from `low` to `high`, about `n` of them.
fn ticks(low: f64, high: f64, n: usize) -> Vec<f64> {
    let rough = (high - low) / n as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough * 0.7).unwrap_or(rough);
    let first = (low / step).ceil();
    (0..=n * 2).map(|i| (first + i as f64) * step).take_while(|tick| *tick <= high + step * 1e-9).collect()
}

/// Powers of ten from 10^`low` to 10^`high` with their labels, and between few of them also 2 and 5 times each.
fn decade_ticks(low: f64, high: f64, n: usize) -> Vec<(f64, String)> {
    let every = ((high - low) / n as f64).ceil().max(1.0) as i64;
    let between: &[u32] = if high - low < 2.0 { &[1, 2, 5] } else { &[1] };
    let powers = (low.floor() as i64..=high.ceil() as i64).filter(|power| power.rem_euclid(every) == 0);
    let label = |m: u32, power: i64| match power {
        0..=4 => format!("{}", u64::from(m) * 10u64.pow(power as u32)),
        -4..0 => format!("{:.*}", power.unsigned_abs() as usize, f64::from(m) * 10f64.powi(power as i32)),
        _ => format!("{m}e{power}"),
    };
    powers
        .flat_map(|power| between.iter().map(move |m| (*m, power)))
        .map(|(m, power)| (power as f64 + f64::from(m).log10(), label(m, power)))
        .filter(|(tick, _)| (low..=high).contains(tick))
        .collect()
}

fn labelled(ticks: &[f64]) -> Vec<(f64, String)> {
    let digits = digits(ticks);
    ticks.iter().map(|tick| (*tick, number(*tick, digits))).collect()
}

/// Digits after the point that tell the ticks apart; None where they are too small or too large for that.
fn digits(ticks: &[f64]) -> Option<usize> {
    let gap = ticks.windows(2).map(|w| w[1] - w[0]).fold(f64::MAX, f64::min);
    let gap = if ticks.len() < 2 { ticks.first().map_or(1.0, |t| t.abs()) } else { gap };
    let largest = ticks.iter().fold(0.0f64, |m, t| m.max(t.abs()));
    let needed = (-gap.log10()).ceil().max(0.0);
    (needed <= 4.0 && largest < 1e6).then_some(needed as usize)
}

fn number(x: f64, digits: Option<usize>) -> String {
    match digits {
        // A zero that rounding left over has no sign.
        Some(digits) => format!("{:.digits$}", if x.abs() < 1e-12 { 0.0 } else { x }),
        None => format!("{x:.1e}"),
    }
}

fn put(buffer: &mut Buffer, x: u16, y: u16, text: &str, style: Style) {
    if buffer.area.contains((x, y).into()) {
        buffer.set_stringn(x, y, text, usize::from(buffer.area.right() - x), style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let check = |low, high, n, expect: &[&str]| {
            let ticks = ticks(low, high, n);
            let digits = digits(&ticks);
            assert_eq!(ticks.iter().map(|t| number(*t, digits)).collect::<Vec<_>>(), expect, "{low} {high}");
        };
        check(0.0, 10.0, 5, &["0", "2", "4", "6", "8", "10"]);
        check(0.13, 2.31, 3, &["1", "2"]);
        check(0.71, 0.92, 3, &["0.75", "0.80", "0.85", "0.90"]);
        check(-0.3, 0.3, 3, &["-0.2", "0.0", "0.2"]);
        check(0.000_31, 0.000_74, 2, &["0.0004", "0.0006"]);
        check(0.000_031, 0.000_074, 2, &["4.0e-5", "6.0e-5"]);
        check(1e7, 9e7, 2, &["5.0e7"]);
    }

    fn screen(plot: &Plot<'_>, width: u16, height: u16) -> String {
        let area = Rect { x: 0, y: 0, width, height };
        let mut buffer = Buffer::empty(area);
        plot.paint(area, &mut buffer);
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
        (0..height).map(|y| row(y).trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    fn plain<'a>(dots: &'a [(f64, f64)], line: &'a [(f64, f64)], marks: &'a [(f64, f64)]) -> Plot<'a> {
        let style = Style::new();
        Plot { dots, line, marks, x: (0.0, 100.0), log: false, dot_style: style, line_style: style, mark_style: style }
    }

    #[test]
    fn a_plot_reads_without_colour() {
        let dots: Vec<(f64, f64)> =
            (0..60).map(|i| (f64::from(i), 3.0 / f64::from(i + 1) + f64::from(i % 3) * 0.2)).collect();
        let line: Vec<(f64, f64)> = (0..60).map(|i| (f64::from(i), 3.0 / f64::from(i + 1) + 0.2)).collect();
        insta::assert_snapshot!(screen(&plain(&dots, &line, &[(30.0, 1.0), (55.0, 0.8)]), 50, 12));
    }

    #[test]
    fn decades_are_labelled_as_numbers() {
        let labels = |low, high, n| decade_ticks(low, high, n).into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels(-2.6, 1.3, 4), ["0.01", "0.1", "1", "10"]);
        assert_eq!(labels(0.1, 1.1, 3), ["2", "5", "10"]);
        assert_eq!(labels(-9.0, 7.0, 4), ["1e-8", "0.0001", "1", "10000"]);
        let line: Vec<(f64, f64)> = (0..=100).map(|i| (f64::from(i), 10f64.powf(1.0 - f64::from(i) / 25.0))).collect();
        insta::assert_snapshot!(screen(&Plot { log: true, ..plain(&[(3.0, 0.0)], &line, &[]) }, 50, 12));
    }

    #[test]
    fn hostile_values_and_sizes_paint_no_nonsense() {
        let bad = [(1.0, f64::NAN), (f64::NAN, 1.0), (2.0, f64::INFINITY), (3.0, 1e308), (4.0, -1e308), (5.0, 1.0)];
        for (width, height) in [(0, 0), (1, 1), (16, 4), (50, 12), (300, 80)] {
            screen(&plain(&bad, &bad, &bad), width, height);
            screen(&Plot { log: true, ..plain(&bad, &bad, &bad) }, width, height);
            screen(&plain(&bad[..3], &[], &[]), width, height);
        }
        assert_eq!(screen(&plain(&bad[..2], &[], &[]), 50, 12).trim(), "", "there is nothing to plot");
    }
}
