//! Paints the dashboard for any size: figures, curves, stages, and what happened. Nothing that only a colour tells; every
//! string of the journal goes through [`crate::text`].

use super::curve::EMA;
use super::plot::Plot;
use super::state::{Life, StageState, Watched};
use super::summary::stage_word;
use super::{figures, interrupted};
use crate::paint::{Paint, nth, put, put_right, rule};
use crate::progress::{DECADES, bar, count, duration, percent, time_left};
use crate::text::{self, fit, one_line};
use limbeck_artifact::event::Stage;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

/// Columns of the figures and of the stages.
const FIGURES: u16 = 28;
const STAGES: u16 = 36;
/// From here on valid accuracy and learning rate have plots of their own.
const WIDE: u16 = 110;

/// Paints `run`; `now_ms` is the time since 1970 UTC.
pub fn draw(run: &Watched, life: Life, now_ms: i64, colour: bool, frame: &mut Frame<'_>) {
    let area = frame.area();
    let screen = Screen { run, life, now_ms, paint: Paint { colour } };
    if area.width < 40 || area.height < 10 {
        return screen.tiny(area, frame);
    }
    screen.title(nth(area, 0), frame);
    screen.progress(nth(area, 1), frame);
    let notice = screen.notice(area.width);
    let keys = nth(area, usize::from(area.height) - 1);
    screen.keys(keys, frame);
    let foot = keys.y - notice.len() as u16;
    for (i, row) in notice.iter().enumerate() {
        let style = screen.paint.alarm();
        put(frame, nth(area, usize::from(foot) + i), Line::styled(format!(" {row}"), style));
    }
    let body = Rect { x: area.x, y: area.y + 2, width: area.width, height: foot - 2 };
    if body.width < 60 || body.height < 16 { screen.compact(body, frame) } else { screen.full(body, frame) }
}

#[derive(Default)]
struct Points<'a> {
    dots: &'a [(f64, f64)],
    line: &'a [(f64, f64)],
    marks: &'a [(f64, f64)],
    log: bool,
}

struct Screen<'a> {
    run: &'a Watched,
    life: Life,
    now_ms: i64,
    paint: Paint,
}

impl Screen<'_> {
    fn title(&self, area: Rect, frame: &mut Frame<'_>) {
        let right = format!("{} ", self.how_it_is());
        let name = if self.run.version.is_empty() { &self.run.run } else { &self.run.version };
        let on = if self.run.device.is_empty() { String::new() } else { format!(" on {}", self.run.device) };
        let room = usize::from(area.width).saturating_sub(right.width() + 9);
        let left = vec![Span::styled(" watch  ", self.paint.bold()), Span::raw(fit(&format!("{name}{on}"), room))];
        put(frame, area, Line::from(left));
        let style = match self.life {
            Life::Interrupted => self.paint.alarm(),
            Life::Live | Life::Finished => Style::new(),
        };
        put_right(frame, area, Line::styled(right, style));
    }

    fn how_it_is(&self) -> String {
        let wall = duration(self.run.wall_ms(self.life, self.now_ms));
        match (self.life, self.run.finished) {
            (Life::Interrupted, _) if self.run.started_ms.is_none() => "empty".to_owned(),
            (Life::Interrupted, _) => format!("interrupted after {wall}"),
            (Life::Finished, Some((code, _))) if code != 0 => format!("ended after {wall}, exit code {code}"),
            (Life::Finished, _) => format!("finished in {wall}"),
            (Life::Live, _) => format!("live, {wall}"),
        }
    }

    /// The work under way, or what came of it.
    fn progress(&self, area: Rect, frame: &mut Frame<'_>) {
        let current = self.run.current();
        let training = current == Some(Stage::Train) || (current.is_none() && self.life == Life::Interrupted);
        let work = match (current, self.run.step) {
            _ if self.life == Life::Finished => None,
            (_, Some(s)) if training => {
                let left = if self.life == Life::Live && s.step < s.total {
                    format!(" · {} left", time_left(s.eta_s))
                } else {
                    String::new()
                };
                Some((s.step, s.total, format!("step {}/{}{left}", count(s.step), count(s.total))))
            }
            (Some(stage), _) => self.run.stage(stage).progress.as_ref().map(|(done, total, unit)| {
                (*done, *total, format!("{}/{} {}", count(*done), count(*total), one_line(unit)))
            }),
            _ => None,
        };
        let name = current.map_or("", Stage::name);
        let Some((done, total, what)) = work else {
            let (text, style) = self.outcome(name);
            return put(frame, area, Line::styled(fit(&format!(" {text}"), area.width.into()), style));
        };
        let head = format!(" {name:<9}");
        let tail = format!(" {} {what} ", percent(done, total));
        let cells = usize::from(area.width).saturating_sub(head.width() + tail.width());
        let line = vec![
            Span::styled(head, self.paint.bold()),
            Span::styled(bar(done, total, cells), self.paint.with(Color::Green, Modifier::empty())),
            Span::raw(tail),
        ];
        put(frame, area, Line::from(line));
    }

    fn outcome(&self, stage: &str) -> (String, Style) {
        let gates = &self.run.gates;
        let not_passed: Vec<&str> = gates.iter().filter(|g| g.verdict != "pass").map(|g| g.gate.as_str()).collect();
        match (self.life, gates.len(), not_passed.len()) {
            (Life::Live, ..) if stage.is_empty() => ("between two stages".to_owned(), Style::new()),
            (Life::Live, ..) => (format!("{stage} is at work"), Style::new()),
            (Life::Interrupted, ..) if stage.is_empty() => (String::new(), Style::new()),
            (Life::Interrupted, ..) => (format!("stopped in {stage}"), self.paint.alarm()),
            (Life::Finished, 0, _) => match self.run.finished {
                Some((0, _)) | None => (String::new(), Style::new()),
                Some(_) => ("it stopped; the terminal it ran in has the reason".to_owned(), self.paint.alarm()),
            },
            (Life::Finished, n, 0) => (format!("PASS: all {n} gates"), self.paint.with(Color::Green, Modifier::BOLD)),
            (Life::Finished, n, bad) => {
                let names = not_passed.iter().map(|name| one_line(name)).collect::<Vec<_>>().join(", ");
                (format!("NOT PASSED: {bad} of {n} gates ({names})"), self.paint.alarm())
            }
        }
    }

    /// What a person should do, wrapped.
    fn notice(&self, width: u16) -> Vec<String> {
        if self.life != Life::Interrupted {
            return Vec::new();
        }
        let width = usize::from(width).saturating_sub(2);
        let (said, command) = interrupted(self.run);
        // The command stands on a line of its own, to be copied.
        let rows = text::wrap(&said, width).into_iter().chain(text::wrap(&command, width).into_iter().take(3));
        rows.map(|row| row.into_iter().map(|span| span.text).collect()).filter(|row: &String| !row.is_empty()).collect()
    }

    fn keys(&self, area: Rect, frame: &mut Frame<'_>) {
        let line = vec![Span::raw(" "), Span::styled("q", self.paint.key()), Span::raw(" quit")];
        put(frame, area, Line::from(line));
        let said = match self.run.bad_lines {
            0 => "reads the journal, writes nothing ".to_owned(),
            n => format!("{} illegible lines in the journal ", count(n)),
        };
        put_right(frame, Rect { x: area.x + 8, width: area.width - 8, ..area }, Line::styled(said, self.paint.quiet()));
    }

    fn full(&self, body: Rect, frame: &mut Frame<'_>) {
        let shown = self.run.shown_stages().count() as u16;
        let lower = 1 + shown + body.height.saturating_sub(30) / 3;
        let upper = Rect { height: body.height - lower, ..body };
        let plots = Rect { width: body.width - FIGURES, ..upper };
        let wide = body.width >= WIDE;
        let loss_width = if wide { plots.width * 3 / 5 } else { plots.width };
        self.loss(Rect { width: loss_width, ..plots }, frame);
        if wide {
            let x = plots.x + loss_width;
            let side = Rect { x, width: plots.width - loss_width, ..plots };
            let half = side.height / 2;
            self.accuracy(Rect { height: half, ..side }, frame);
            self.rate(Rect { y: side.y + half, height: side.height - half, ..side }, frame);
        }
        let at = Rect { x: plots.right(), width: FIGURES, ..upper };
        rule(self.paint, nth(at, 0), "now", "", frame);
        self.figures(Rect { y: at.y + 1, height: at.height - 1, ..at }, frame);

        let low = Rect { y: upper.bottom(), height: lower, ..body };
        let stages = Rect { width: STAGES, ..low };
        rule(self.paint, nth(stages, 0), "stages", "", frame);
        self.stages(Rect { y: stages.y + 1, height: lower - 1, ..stages }, frame);
        let rest = Rect { x: stages.right(), width: low.width - STAGES, ..low };
        let (gates, happened) = match (self.run.gates.is_empty(), wide) {
            (true, _) => (None, Some(rest)),
            (false, false) => (Some(rest), None),
            (false, true) => {
                let left = rest.width / 2;
                (Some(Rect { width: left, ..rest }), Some(Rect { x: rest.x + left, width: rest.width - left, ..rest }))
            }
        };
        if let Some(area) = gates {
            self.gates(area, frame);
        }
        if let Some(area) = happened {
            self.happened(area, frame);
        }
    }

    /// The loss and little else.
    fn compact(&self, body: Rect, frame: &mut Frame<'_>) {
        let rows = figures::rows(self.run, self.life);
        let told: Vec<String> = rows.iter().take(4).map(|(name, value)| format!("{name} {value}")).collect();
        let line = fit(&format!(" {}", told.join(" · ")), body.width.into());
        put(frame, nth(body, 0), Line::raw(line));
        self.loss(Rect { y: body.y + 1, height: body.height - 1, ..body }, frame);
    }

    /// As many plain lines as fit.
    fn tiny(&self, area: Rect, frame: &mut Frame<'_>) {
        let name = if self.run.version.is_empty() { &self.run.run } else { &self.run.version };
        let mut lines = vec![self.how_it_is()];
        if let Some(s) = self.run.step {
            lines.push(format!("{} step {}/{}", percent(s.step, s.total).trim(), count(s.step), count(s.total)));
        }
        lines.extend(figures::rows(self.run, self.life).into_iter().map(|(name, value)| format!("{name} {value}")));
        lines.push(name.clone());
        if area.height > 1 {
            lines.truncate(usize::from(area.height) - 1);
            lines.push("q quits".to_owned());
        }
        for (i, line) in lines.iter().take(area.height.into()).enumerate() {
            put(frame, nth(area, i), Line::raw(fit(line, area.width.into())));
        }
    }

    fn loss(&self, area: Rect, frame: &mut Frame<'_>) {
        let smoothed: Vec<(f64, f64)> = self.run.curve.smoothed().collect();
        let raw: Vec<(f64, f64)> = self.run.curve.points().map(|p| (p.step as f64, p.loss)).collect();
        let valid: Vec<(f64, f64)> = self.run.valid.iter().map(|v| (v.step as f64, v.loss)).collect();
        let (low, high) =
            smoothed.iter().chain(&valid).fold((f64::MAX, 0.0f64), |(l, h), (_, y)| (l.min(*y), h.max(*y)));
        let log = low > 0.0 && high / low >= DECADES;
        let caption = format!("loss{}: · a step, ⠒ EMA {EMA}, × valid", if log { ", log scale" } else { "" });
        self.plot(area, &caption, Points { dots: &raw, line: &smoothed, marks: &valid, log }, frame);
    }

    fn accuracy(&self, area: Rect, frame: &mut Frame<'_>) {
        let points: Vec<(f64, f64)> = self.run.valid.iter().map(|v| (v.step as f64, v.accuracy * 100.0)).collect();
        self.plot(area, "valid accuracy, %", Points { line: &points, marks: &points, ..Points::default() }, frame);
    }

    fn rate(&self, area: Rect, frame: &mut Frame<'_>) {
        let points: Vec<(f64, f64)> = self.run.curve.points().map(|p| (p.step as f64, p.learning_rate)).collect();
        self.plot(area, "learning rate", Points { line: &points, ..Points::default() }, frame);
    }

    fn plot(&self, area: Rect, caption: &str, points: Points<'_>, frame: &mut Frame<'_>) {
        let Points { dots, line, marks, log } = points;
        rule(self.paint, nth(area, 0), caption, "", frame);
        // A column of air before what stands at the right.
        let inner = Rect { y: area.y + 1, width: area.width - 1, height: area.height.saturating_sub(1), ..area };
        if dots.is_empty() && line.is_empty() {
            let text = if self.life == Life::Live { "nothing yet" } else { "nothing was recorded" };
            return put(frame, nth(inner, 0), Line::styled(format!(" {text}"), self.paint.quiet()));
        }
        let last = self.run.step.map_or(1, |s| s.step.max(s.total));
        Plot {
            dots,
            line,
            marks,
            x: (1.0, last.max(2) as f64),
            log,
            dot_style: self.paint.quiet(),
            line_style: self.paint.with(Color::Green, Modifier::BOLD),
            mark_style: self.paint.with(Color::Cyan, Modifier::BOLD),
        }
        .paint(inner, frame.buffer_mut());
    }

    fn figures(&self, area: Rect, frame: &mut Frame<'_>) {
        let rows = figures::rows(self.run, self.life);
        if rows.is_empty() {
            put(frame, nth(area, 0), Line::styled(" no training yet", self.paint.quiet()));
        }
        for (i, (name, value)) in rows.iter().enumerate() {
            let value = fit(value, usize::from(area.width).saturating_sub(11));
            let line = vec![Span::styled(format!(" {name:<9} "), self.paint.quiet()), Span::raw(value)];
            put(frame, nth(area, i), Line::from(line));
        }
    }

    fn stages(&self, area: Rect, frame: &mut Frame<'_>) {
        for (i, (stage, line)) in self.run.shown_stages().enumerate() {
            let word = stage_word(line.state, self.life);
            let time = match (line.state, line.wall_ms, line.started_ms) {
                (StageState::Done, Some(wall_ms), _) => duration(wall_ms),
                (StageState::Running, _, Some(from)) if self.life == Life::Live => {
                    duration(u64::try_from(self.now_ms.saturating_sub(from)).unwrap_or(0))
                }
                _ => String::new(),
            };
            let (mark, style) = match (line.state, self.life) {
                (StageState::Done | StageState::Cached, _) => ("✓", Style::new()),
                (StageState::Running, Life::Live) => ("▸", self.paint.bold()),
                (StageState::Running, _) => ("!", self.paint.alarm()),
                (StageState::Pending, _) => (" ", self.paint.quiet()),
            };
            let text = format!(" {mark} {:<9} {word:<11} {time}", stage.name());
            put(frame, nth(area, i), Line::styled(fit(&text, area.width.into()), style));
        }
    }

    fn gates(&self, area: Rect, frame: &mut Frame<'_>) {
        rule(self.paint, nth(area, 0), "gates", "", frame);
        let list = Rect { y: area.y + 1, height: area.height - 1, ..area };
        let (rows, gates) = (usize::from(list.height), &self.run.gates);
        let warnings = self.warnings(rows.saturating_sub(gates.len()).min(3));
        let each = (rows.saturating_sub(warnings.len()) / gates.len()).max(1);
        for (i, warning) in warnings.iter().enumerate() {
            self.warning(nth(list, rows - warnings.len() + i), warning, frame);
        }
        let width = usize::from(list.width).saturating_sub(4);
        for (i, gate) in gates.iter().take(rows).enumerate() {
            let style = match gate.verdict.as_str() {
                "pass" => self.paint.with(Color::Green, Modifier::BOLD),
                "fail" => self.paint.alarm(),
                _ => self.paint.with(Color::Yellow, Modifier::BOLD),
            };
            let word = fit(&gate.verdict.to_uppercase(), 12);
            let room = usize::from(list.width).saturating_sub(word.width() + 3);
            let reason = if each == 1 { format!("{}: {}", gate.gate, gate.reason) } else { gate.gate.clone() };
            let head = vec![Span::styled(format!(" {word} "), style), Span::raw(fit(&reason, room))];
            put(frame, nth(list, i * each), Line::from(head));
            for (j, row) in text::wrap(&one_line(&gate.reason), width).iter().take(each - 1).enumerate() {
                let row: String = row.iter().map(|span| span.text.as_str()).collect();
                put(frame, nth(list, i * each + 1 + j), Line::styled(format!("   {row}"), self.paint.quiet()));
            }
        }
    }

    fn happened(&self, area: Rect, frame: &mut Frame<'_>) {
        let caption = match self.run.warnings.len() {
            0 => "lately".to_owned(),
            1 => "lately, 1 warning".to_owned(),
            n => format!("lately, {} warnings", count(n as u64)),
        };
        rule(self.paint, nth(area, 0), &caption, "", frame);
        let list = Rect { y: area.y + 1, height: area.height - 1, ..area };
        let rows = usize::from(list.height);
        let skip = self.run.recent.len().saturating_sub(rows);
        let shown = || self.run.recent.iter().skip(skip);
        // A warning stays in sight when what came later pushes it out.
        let pinned = if shown().any(|item| item.warning) { &[][..] } else { self.warnings(1) };
        for warning in pinned {
            self.warning(nth(list, 0), warning, frame);
        }
        for (i, item) in shown().enumerate().skip(pinned.len()) {
            let style = if item.warning { self.paint.with(Color::Yellow, Modifier::BOLD) } else { Style::new() };
            let text = fit(&item.text, usize::from(list.width).saturating_sub(2));
            put(frame, nth(list, i), Line::styled(format!(" {text}"), style));
        }
    }

    /// The newest `n` warnings, oldest first.
    fn warnings(&self, n: usize) -> &[String] {
        &self.run.warnings[self.run.warnings.len().saturating_sub(n)..]
    }

    fn warning(&self, row: Rect, text: &str, frame: &mut Frame<'_>) {
        let text = fit(&format!(" warning: {text}"), usize::from(row.width).saturating_sub(1));
        put(frame, row, Line::styled(text, self.paint.with(Color::Yellow, Modifier::BOLD)));
    }
}
