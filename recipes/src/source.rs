//! A text that values come from (a recipe file or a `--set` argument) and places in it. Lines and columns are 1-based;
//! columns count characters.

use std::ops::Range;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What a person calls it: the file's path as given, or `--set`.
    pub name: Arc<str>,
    pub text: Arc<str>,
}

/// A stretch of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub source: Source,
    /// Byte range in the source's text.
    pub span: Range<usize>,
}

impl Source {
    pub fn new(name: &str, text: &str) -> Source {
        Source { name: name.into(), text: text.into() }
    }

    pub(crate) fn at(&self, span: Range<usize>) -> Place {
        Place { source: self.clone(), span }
    }
}

impl Place {
    /// Line and column of the first byte.
    pub fn line_column(&self) -> (usize, usize) {
        let text = &self.source.text;
        let mut start = self.span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// The line the place is on, and under it carets that mark the place; empty when there is nothing to show.
    pub(crate) fn excerpt(&self) -> String {
        let (line, column) = self.line_column();
        let Some(text) = self.source.text.lines().nth(line - 1) else { return String::new() };
        let width = text.chars().count();
        let marked =
            self.source.text.get(self.span.clone()).map_or(1, |s| s.lines().next().unwrap_or("").chars().count());
        let carets = marked.clamp(1, width.saturating_sub(column - 1).max(1));
        // Tabs are kept so that the carets stand under what they mark.
        let indent: String = text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        format!("{line:>5} | {text}\n      | {indent}{}\n", "^".repeat(carets))
    }
}
