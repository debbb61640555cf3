//! Fits the screen's state to the terminal: the message and what is put into it laid out, the fields of the item on the screen
//! read and looked up in its message, scrolling kept within bounds.

use super::app::{App, Cuts, Mode};
use super::desk::Form;
use super::layout;
use super::sheet::Sheet;
use super::spans::{Found, Haystack};
use crate::text::{self, Laid};
use ratatui::layout::Size;

impl App {
    /// Takes the terminal's size and lays the message out for it. Call it before drawing.
    pub fn fit(&mut self, size: Size) {
        self.size = size;
        self.read_sheet();
        self.find_places();
        let width = layout::panes(self).message.width.saturating_sub(2);
        if let Some(at) = self.at {
            let wanted = (at, width, self.cuts());
            if self.body_of.as_ref() != Some(&wanted) {
                self.body = self.laid(&self.items[at].message, width, &wanted.2);
                self.answer = match self.form {
                    Form::Text => self.laid(&self.items[at].answer, width, &[]),
                    _ => Vec::new(),
                };
                self.body_of = Some(wanted);
            }
        }
        self.fit_editor();
        self.page = usize::from(layout::panes(self).message.height).max(1);
        self.scroll = self.scroll.min(self.last_scroll());
        self.show_chosen();
    }

    fn laid(&self, text: &str, width: u16, cuts: &[(usize, String)]) -> Vec<Laid> {
        let mut rows = text::lay(text, usize::from(width), cuts);
        // Nobody types into it.
        if text.ends_with('\n') && rows.len() > 1 && rows.last().is_some_and(|row| row.pieces.is_empty()) {
            rows.pop();
        }
        rows
    }

    /// The fields of the item that came to the screen.
    fn read_sheet(&mut self) {
        if self.sheet_of == self.at {
            return;
        }
        self.sheet = self.schema.as_ref().zip(self.item()).map(|(schema, item)| {
            let mut sheet = Sheet::of(schema, &item.answer);
            sheet.compare(&item.instead);
            sheet
        });
        let message = self.item().filter(|_| self.schema.is_some()).map_or("", |item| &item.message);
        // What is not laid out is not searched either.
        let end = message.char_indices().nth(text::MAX_CHARS).map_or(message.len(), |(i, _)| i);
        self.haystack = Haystack::new(&message[..end]);
        self.sheet_of = self.at;
    }

    /// The form on the screen: the one that is filled in, or the recorded one.
    pub(super) fn shown_sheet(&self) -> Option<&Sheet> {
        match &self.mode {
            Mode::Fill(filling) => Some(&filling.sheet),
            Mode::Page(page) => match &*page.back {
                Mode::Fill(filling) => Some(&filling.sheet),
                _ => self.sheet.as_ref(),
            },
            _ => self.sheet.as_ref(),
        }
    }

    fn find_places(&mut self) {
        let found = self.shown_sheet().map_or(Vec::new(), |sheet| sheet.places(&self.haystack));
        self.absent = found.iter().filter(|(_, found)| *found == Found::Absent).map(|(row, _)| *row).collect();
        let place = |(row, found)| if let Found::At(range) = found { Some((range, row)) } else { None };
        self.places = found.into_iter().filter_map(place).collect();
    }

    /// What is put into the message to tie places to fields, and where styles change.
    fn cuts(&self) -> Cuts {
        let mut cuts: Vec<(usize, bool, String)> = Vec::new();
        for (range, row) in &self.places {
            cuts.push((range.start, true, format!("{}[", Sheet::mark(*row))));
            cuts.push((range.end, false, "]".to_string()));
        }
        if let Some(range) = self.taking() {
            cuts.extend([(range.start, true, String::new()), (range.end, false, String::new())]);
        }
        // Where one ends and another begins, the first is closed first.
        cuts.sort_by_key(|(at, opens, _)| (*at, *opens));
        cuts.into_iter().map(|(at, _, put)| (at, put)).collect()
    }

    pub(super) fn last_scroll(&self) -> usize {
        let answer = usize::from(layout::panes(self).answer.height);
        // A long text goes on where the message ends.
        let more = if self.form == Form::Text { self.answer.len().saturating_sub(answer) } else { 0 };
        self.last_of_message() + more
    }

    /// How far the message alone is scrolled.
    pub(super) fn last_of_message(&self) -> usize {
        self.body.len().saturating_sub(self.page)
    }

    pub(super) fn scroll_by(&mut self, by: isize) {
        self.scroll = self.scroll.saturating_add_signed(by).min(self.last_scroll());
    }
}
