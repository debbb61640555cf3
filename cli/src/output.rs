//! stdout is data, stderr is talk. What both look like is decided once, from the terminal and `NO_COLOR`.

use crate::exit::Result;
use limbeck_artifact::untrusted::visible_json;
use std::io::{IsTerminal, Write};

/// What stderr can show.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// A line can be redrawn in place.
    pub live: bool,
    pub colour: bool,
    pub width: u16,
}

/// Columns of text that goes to no terminal.
const PLAIN_WIDTH: u16 = 110;

impl Terminal {
    pub fn of_stderr() -> Terminal {
        Terminal::of(std::io::stderr().is_terminal())
    }

    pub fn of_stdout() -> Terminal {
        Terminal::of(std::io::stdout().is_terminal())
    }

    fn of(is_terminal: bool) -> Terminal {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let live = is_terminal && !dumb;
        let width =
            if live { crossterm::terminal::size().map_or(80, |(columns, _)| columns.max(40)) } else { PLAIN_WIDTH };
        Terminal { live, colour: live && !set("NO_COLOR"), width }
    }
}

/// Writes data to stdout. A reader who went away (`| head`) is no error.
///
/// # Errors
/// When stdout can't be written to for another reason.
pub fn stdout(text: &str) -> Result<()> {
    stdout_while_read(text).map(|_| ())
}

/// As [`stdout`]; false when the reader has gone away.
///
/// # Errors
/// As [`stdout`].
pub fn stdout_while_read(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// One JSON value, indented, with a final line break. What it holds may come from strangers.
///
/// # Errors
/// As [`stdout`].
pub fn json(value: &serde_json::Value) -> Result<()> {
    stdout(&format!("{}\n", visible_json(&serde_json::to_string_pretty(value)?)))
}

/// Talks to the person; nothing can be done when nobody listens.
pub fn stderr(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Bold where colours are.
pub fn bold(terminal: &Terminal, text: &str) -> String {
    if terminal.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

/// The first digits of a digest, as a person compares them.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Columns as wide as they need, to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(&format!("{cell:>width$}  ", width = width(column)));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}
