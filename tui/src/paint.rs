//! What the screens share: colours and what stands in for them, rules, and rows put where they belong.

use crate::text;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use unicode_width::UnicodeWidthStr;

/// What colours there are, and what stands in for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    pub(crate) colour: bool,
}

impl Paint {
    pub(crate) fn with(self, colour: Color, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        if self.colour { style.fg(colour) } else { style }
    }

    pub(crate) fn bold(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(crate) fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(crate) fn key(self) -> Style {
        self.with(Color::Cyan, Modifier::BOLD)
    }

    pub(crate) fn alarm(self) -> Style {
        self.with(Color::Red, Modifier::BOLD)
    }

    pub(crate) fn escaped(self) -> Style {
        self.with(Color::Yellow, Modifier::REVERSED)
    }

    pub(crate) fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

/// A rule with a caption at either end.
pub(crate) fn rule(paint: Paint, area: Rect, left: &str, right: &str, frame: &mut Frame<'_>) {
    let width = usize::from(area.width);
    let left = if left.is_empty() { String::new() } else { format!(" {left} ") };
    let room = width.saturating_sub(left.width() + 8);
    let right = if right.is_empty() || room < 8 { String::new() } else { format!(" {} ", text::fit(right, room)) };
    let fill = width.saturating_sub(4 + left.width() + right.width());
    let line = format!("──{left}{}{right}──", "─".repeat(fill));
    put(frame, area, Line::styled(line, paint.quiet()));
}

/// The `n`-th row of `area`; empty beyond its end.
pub(crate) fn nth(area: Rect, n: usize) -> Rect {
    match n < usize::from(area.height) {
        true => Rect { y: area.y + n as u16, height: 1, ..area },
        false => Rect { height: 0, ..area },
    }
}

pub(crate) fn put(frame: &mut Frame<'_>, area: Rect, line: Line<'_>) {
    if area.height > 0 {
        frame.render_widget(line, area);
    }
}

pub(crate) fn put_right(frame: &mut Frame<'_>, area: Rect, line: Line<'_>) {
    let width = (line.width() as u16).min(area.width);
    put(frame, Rect { x: area.right() - width, width, ..area }, line);
}
