mod fields;
mod texts;

use super::app::Mode;
use super::*;
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Size;
use ratatui::style::Color;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A desk in memory whose disk can be full.
struct Paper {
    items: Arc<[Item]>,
    labels: Arc<[String]>,
    form: Form,
    log: Vec<(usize, Judgement)>,
    full: bool,
}

impl Desk for Paper {
    fn name(&self) -> &str {
        "quickstart"
    }

    fn items(&self) -> Arc<[Item]> {
        self.items.clone()
    }

    fn labels(&self) -> Arc<[String]> {
        self.labels.clone()
    }

    fn form(&self) -> Form {
        self.form.clone()
    }

    fn state(&self, item: usize) -> State {
        let of_item = || self.log.iter().filter(|(of, _)| *of == item).map(|(_, judgement)| judgement);
        let judgement = of_item().rfind(|j| j.verdict.judges()).cloned();
        let notes = of_item().filter(|j| j.verdict == Verdict::Note).filter_map(|j| j.note.clone()).collect();
        let flags = of_item().filter(|j| j.verdict == Verdict::Flag).map(|_| "you".to_string()).collect();
        State { closed: judgement.is_some(), judgement, marks: Marks { flags, notes, votes: Vec::new() } }
    }

    fn history(&self) -> Vec<usize> {
        self.log.iter().map(|(item, _)| *item).collect()
    }

    fn decide(&mut self, item: usize, judgement: &Judgement, _: &Seen) -> Result<(), DeskError> {
        if self.full {
            return Err(DeskError(
                "failed to append to decisions.jsonl: no space left; free some and try again".into(),
            ));
        }
        self.log.push((item, judgement.clone()));
        Ok(())
    }

    fn undo(&mut self, item: usize) -> Result<(), DeskError> {
        if self.full {
            return Err(DeskError(
                "failed to append to decisions.jsonl: no space left; free some and try again".into(),
            ));
        }
        let last = self.log.iter().rposition(|(of, _)| *of == item).ok_or(DeskError("nothing there".into()))?;
        self.log.remove(last);
        Ok(())
    }

    fn similar(&self, item: usize) -> Option<Vec<Alike>> {
        let alike = |item: usize, label: &str, decided| Alike { item, label: label.into(), decided };
        Some(if item == 0 && self.form == Form::Labels {
            vec![alike(3, "card_delivery_estimate", true), alike(1, "card_arrival", false)]
        } else {
            vec![]
        })
    }

    fn gauge(&mut self) -> Gauge {
        Gauge { short: "random share 3 of 69, 0 wrong (up to 0 certify 5%)".into(), reached: false }
    }

    fn guidelines(&self) -> &str {
        "# Labels\n\ncard_arrival: when will it come, where is it.\nexchange_rate: which rate applies, and when."
    }

    fn report(&mut self) -> Vec<String> {
        vec!["nobody yet".into()]
    }
}

fn labels() -> Arc<[String]> {
    let labels = "activate_my_card,balance_not_updated,card_about_to_expire,card_arrival,card_delivery_estimate,\
        card_not_working,cash_withdrawal_charge,exchange_rate,lost_or_stolen_card,pending_card_payment";
    labels.split(',').map(str::to_string).collect()
}

fn item(text: &str, answer: &str) -> Item {
    Item {
        id: "t".into(),
        message: text.into(),
        answer: answer.into(),
        answered_by: "frontier-1".into(),
        why: vec!["random sample".into(), "feedback disagrees".into()],
        instead: vec![
            ("lost_or_stolen_card".into(), "61%".into()),
            ("card_about_to_expire".into(), "a copy's answer".into()),
        ],
        feedback: Some("thumbs down".into()),
        about: vec!["customer c-017".into(), "2026-03-04 10:11".into()],
        tags: vec![if answer == "exchange_rate" { "random" } else { "low confidence" }],
    }
}

fn paper() -> Paper {
    let long: String = (1..=60).map(|n| format!("{n}. I was charged a fee when I took out cash.\n")).collect();
    let items = vec![
        item(
            "I ordered my card two weeks ago and it still has not arrived, although the letter said that it would be with me within five working days. What should I do?",
            "card_arrival",
        ),
        item(
            "\u{1b}[2J\u{1b}]0;owned\u{7}invoice_\u{202e}gpj.exe pay\u{200b}pal, spelled: \\u{202e}",
            "not a label\u{1b}[5m",
        ),
        item(&long, "cash_withdrawal_charge"),
        item("卡片还没有到 👍🏽 ok", "card_delivery_estimate"),
        item("", "exchange_rate"),
    ];
    Paper { items: items.into(), labels: labels(), form: Form::Labels, log: Vec::new(), full: false }
}

struct Session {
    app: App,
    desk: Paper,
    size: Size,
}

impl Session {
    fn new(desk: Paper, width: u16, height: u16) -> Session {
        let mut app = App::new(&desk, KeyMap::default());
        let size = Size { width, height };
        app.fit(size);
        Session { app, desk, size }
    }

    fn press(&mut self, code: KeyCode) -> &mut Self {
        self.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn key(&mut self, key: KeyEvent) -> &mut Self {
        let effect = self.app.handle(key);
        carry_out(&mut self.app, &mut self.desk, effect);
        attend(&mut self.app, &mut self.desk);
        self.app.fit(self.size);
        self
    }

    fn type_in(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            self.press(match c {
                '\n' => KeyCode::Enter,
                '\u{1b}' => KeyCode::Esc,
                c => KeyCode::Char(c),
            });
        }
        self
    }

    fn screen(&mut self) -> String {
        let mut terminal = Terminal::new(TestBackend::new(self.size.width, self.size.height)).unwrap();
        terminal
            .draw(|frame| {
                self.app.fit(frame.area().as_size());
                draw(&self.app, true, frame);
            })
            .unwrap();
        // The test backend cannot print what has no columns.
        if self.size.width == 0 { String::new() } else { terminal.backend().to_string() }
    }

    /// The screen with its styles: each run of one style as `<style|text>`, plain text as it is.
    fn styled(&mut self, colour: bool) -> String {
        let mut terminal = Terminal::new(TestBackend::new(self.size.width, self.size.height)).unwrap();
        terminal.draw(|frame| draw(&self.app, colour, frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let mut out = String::new();
        for y in 0..self.size.height {
            let mut runs: Vec<(String, String)> = Vec::new();
            for x in 0..self.size.width {
                let cell = &buffer[(x, y)];
                let colour =
                    if cell.fg == Color::Reset { String::new() } else { format!("{:?} ", cell.fg).to_lowercase() };
                let names =
                    cell.modifier.iter_names().map(|(name, _)| name.to_lowercase()).collect::<Vec<_>>().join(" ");
                let style = format!("{colour}{names}").trim().to_string();
                match runs.last_mut() {
                    Some((last, text)) if *last == style => text.push_str(cell.symbol()),
                    _ => runs.push((style, cell.symbol().to_string())),
                }
            }
            let line: String = runs
                .iter()
                .map(|(style, text)| if style.is_empty() { text.clone() } else { format!("<{style}|{text}>") })
                .collect();
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    fn verdicts(&self) -> Vec<(usize, Verdict, Option<&str>, Option<&str>)> {
        self.desk.log.iter().map(|(i, j)| (*i, j.verdict, j.label.as_deref(), j.note.as_deref())).collect()
    }
}

fn session() -> Session {
    Session::new(paper(), 80, 24)
}

#[test]
fn one_key_accepts_and_the_next_item_is_there() {
    let mut s = session();
    s.press(KeyCode::Enter);
    assert_eq!(s.verdicts(), [(0, Verdict::Accept, Some("card_arrival"), None)]);
    assert_eq!(s.app.at, Some(1));
}

#[test]
fn a_few_letters_correct() {
    let mut s = session();
    s.type_in("clost\n");
    assert_eq!(s.verdicts(), [(0, Verdict::Correct, Some("lost_or_stolen_card"), None)]);
    s.type_in("czzzz\n");
    assert_eq!((s.app.at, s.verdicts().len()), (Some(1), 1), "nothing matches, nothing is saved");
    s.press(KeyCode::Esc);
    assert_eq!(s.app.mode, Mode::Read);
}

#[test]
fn choosing_the_models_own_answer_accepts_it() {
    let mut s = session();
    s.type_in("carrival\n");
    assert_eq!(s.verdicts(), [(0, Verdict::Accept, Some("card_arrival"), None)]);
}

#[test]
fn an_answer_outside_the_labels_cannot_be_accepted() {
    let mut s = session();
    s.type_in("\n\na");
    assert_eq!((s.verdicts().len(), s.app.at), (1, Some(1)));
    assert!(s.screen().contains("not one of the labels"));
}

#[test]
fn rejecting_asks_why() {
    let mut s = session();
    s.type_in("x\n");
    assert_eq!(s.verdicts(), [], "a rejection needs a reason");
    s.type_in("two things\n");
    assert_eq!(s.verdicts(), [(0, Verdict::Reject, None, Some("two things"))]);
    s.type_in("x").press(KeyCode::Down).type_in("\n");
    assert_eq!(s.verdicts()[1], (1, Verdict::Reject, None, Some("not answerable from the text")));
}

#[test]
fn notes_and_flags_are_saved_at_once_and_the_item_stays() {
    let mut s = session();
    s.type_in("nhmm\nf");
    assert_eq!(s.verdicts(), [(0, Verdict::Note, None, Some("hmm")), (0, Verdict::Flag, None, None)]);
    assert_eq!(s.app.at, Some(0));
    let screen = s.screen();
    assert!(screen.contains("flagged   by you") && screen.contains("notes     hmm"), "{screen}");
    s.type_in("n\n");
    assert_eq!(s.verdicts().len(), 2, "nothing typed is no note");
    s.type_in("uu");
    assert_eq!((s.verdicts().len(), s.app.marks.len()), (0, 0));
}

#[test]
fn a_digit_takes_what_is_offered_instead() {
    let mut s = session();
    s.type_in("2");
    assert_eq!(s.verdicts(), [(0, Verdict::Correct, Some("card_about_to_expire"), None)]);
    s.type_in("3");
    assert_eq!((s.verdicts().len(), s.app.at), (1, Some(1)));
}

#[test]
fn a_half_typed_note_survives_a_lost_terminal() {
    let mut s = session();
    s.type_in("nimportant, beca");
    let effect = s.app.half_typed();
    carry_out(&mut s.app, &mut s.desk, effect);
    assert_eq!(s.verdicts(), [(0, Verdict::Note, None, Some("important, beca"))]);
    s.type_in("clost");
    assert_eq!(s.app.half_typed(), Effect::None, "half a label is no decision");
}

#[test]
fn one_can_search_filter_and_jump() {
    let mut s = session();
    s.type_in("/CHARGED a fee\n");
    assert_eq!((s.app.at, s.app.view.as_ref().map(|v| v.items.clone())), (Some(2), Some(vec![2])));
    s.type_in("\n");
    assert_eq!(s.app.view, None, "the view is done");
    s.type_in("vrandom\n");
    assert_eq!(s.app.at, Some(4));
    s.press(KeyCode::Right);
    assert!(s.screen().contains("all of this view"));
    s.press(KeyCode::Esc).type_in(":2\n");
    assert_eq!((s.app.at, s.app.view.is_none()), (Some(1), true));
    s.type_in(":99\n");
    assert!(s.screen().contains("there are items 1 to 5"));
    s.press(KeyCode::Esc).type_in("vflagg\n");
    assert!(s.screen().contains("no item is flagged"));
    s.press(KeyCode::Esc).type_in("/zzz\n");
    assert!(s.screen().contains("nothing holds that"));
}

#[test]
fn pages_scroll_and_go_away() {
    let mut s = Session::new(paper(), 60, 14);
    s.type_in("?");
    assert!(s.screen().contains("more lines"));
    s.press(KeyCode::End);
    assert!(s.screen().contains("quit: everything"), "{}", s.screen());
    s.press(KeyCode::Esc);
    assert_eq!(s.app.mode, Mode::Read);
    s.type_in("g");
    assert!(s.screen().contains("when will it come"));
}

#[test]
fn what_is_not_saved_stays_on_the_screen() {
    let mut s = session();
    s.desk.full = true;
    s.type_in("nhmm\n\n");
    assert_eq!((s.app.at, s.app.reviewed(), s.verdicts().len()), (Some(0), 0, 0));
    assert!(s.screen().contains("not saved: failed to append to decisions.jsonl"));
    s.desk.full = false;
    s.type_in("\n");
    assert_eq!(s.app.reviewed(), 1);
    s.desk.full = true;
    s.type_in("u");
    assert_eq!((s.app.at, s.app.reviewed()), (Some(1), 1));
}

#[test]
fn skipped_items_can_be_gone_through_again() {
    let mut s = session();
    s.type_in("s").type_in("cstolen\n").type_in("\ns\n");
    assert_eq!((s.app.at, s.app.reviewed(), s.app.skipped()), (None, 3, 2));
    s.type_in("r");
    assert_eq!(s.app.at, Some(0));
    s.type_in("\n");
    assert_eq!(s.app.at, Some(3));
    s.type_in("u");
    assert_eq!(s.app.at, Some(0));
    s.type_in("s\n");
    assert_eq!((s.app.at, s.app.reviewed(), s.app.skipped()), (None, 4, 1));
}

#[test]
fn undo_reaches_into_earlier_sessions() {
    let mut first = session();
    first.type_in("\n").type_in("cstolen\n");
    let mut s = Session::new(first.desk, 80, 24);
    assert_eq!(s.app.at, Some(2));
    s.type_in("uu");
    assert_eq!((s.app.at, s.desk.log.len()), (Some(0), 0));
    s.type_in("u");
    assert!(s.screen().contains("nothing of yours to take back"));
}

#[test]
fn a_second_decision_replaces_the_first_and_undo_brings_it_back() {
    let mut s = session();
    s.type_in("\n").press(KeyCode::Left).type_in("cstolen\n");
    assert_eq!(s.app.reviewed(), 1);
    s.type_in("u");
    assert!(s.screen().contains("accepted card_arrival"));
}

#[test]
fn pasting_on_the_message_decides_nothing() {
    let mut s = session();
    s.app.paste("a\nc\nx\nq");
    assert_eq!((s.verdicts().len(), s.app.at), (0, Some(0)));
    s.type_in("c");
    s.app.paste("stolen\n");
    assert!(s.screen().contains("> lost_or_stolen_card"));
}

#[test]
fn long_messages_scroll_to_their_end_and_no_further() {
    let mut s = session();
    s.press(KeyCode::Right).press(KeyCode::Right);
    assert!(s.screen().contains("↓ more"));
    s.press(KeyCode::End).press(KeyCode::Down).press(KeyCode::PageDown);
    let screen = s.screen();
    assert!(screen.contains("60. I was charged") && screen.contains("↑ more, end"), "{screen}");
    s.press(KeyCode::PageUp).press(KeyCode::Home);
    assert!(s.screen().contains(" 1. I was charged"));
}

#[test]
fn nothing_is_decided_where_nothing_can_be_seen() {
    let mut s = Session::new(paper(), 30, 8);
    s.type_in("\nasx");
    assert_eq!(s.verdicts(), []);
    assert!(s.screen().contains("too small: 40 x 12 needed"));
    assert_eq!(s.app.handle(KeyEvent::from(KeyCode::Char('q'))), Effect::Quit);
}

#[test]
fn the_smallest_screen_still_shows_what_enter_takes() {
    for keys in ["ccard", "n", "x"] {
        let mut s = Session::new(paper(), 40, 12);
        s.type_in(keys);
        let chosen = match keys {
            "ccard" => "> card_about_to_expire",
            "x" => "reject as:",
            _ => "note:",
        };
        assert!(s.screen().contains(chosen), "{}", s.screen());
    }
}

#[test]
fn no_cell_of_a_hostile_item_holds_what_a_terminal_obeys() {
    let mut s = session();
    s.press(KeyCode::Enter);
    for keys in ["", "c", "\u{1b}", "x", "zz\n"] {
        let screen = s.type_in(keys).screen();
        assert!(!screen.chars().any(|c| c != '\n' && crate::text::hides(c)), "{screen}");
    }
}

#[test]
fn a_rehearsal_goes_through_every_kind_of_answer() {
    for mut desk in [paper(), fields::bookings(), texts::letters()] {
        let done = rehearse(&mut desk, 100, Duration::ZERO, 80, 24);
        assert!(done.decisions.len() >= 2 && !done.looks.is_empty(), "{}", done.screen);
        assert!(done.screen.contains("items are reviewed"), "{}", done.screen);
    }
}

const SIZES: [(u16, u16); 3] = [(80, 24), (60, 20), (140, 40)];

fn snapshot(name: &str, keys: impl Fn(&mut Session)) {
    for (width, height) in SIZES {
        let mut s = Session::new(paper(), width, height);
        attend(&mut s.app, &mut s.desk);
        keys(&mut s);
        insta::assert_snapshot!(format!("{name}_{width}x{height}"), s.screen());
    }
}

#[test]
fn screens_read_well() {
    snapshot("message", |_| {});
    snapshot("hostile", |s| {
        s.type_in("nask the team\n").press(KeyCode::Enter);
    });
    snapshot("long", |s| {
        s.type_in("ss").press(KeyCode::PageDown);
    });
    snapshot("correct", |s| {
        s.type_in("ccard");
    });
    snapshot("reject", |s| {
        s.type_in("x").press(KeyCode::Down).press(KeyCode::Down);
    });
    snapshot("note", |s| {
        s.type_in("nasks for two things");
    });
    snapshot("help", |s| {
        s.type_in("?");
    });
    snapshot("guidelines", |s| {
        s.type_in("g");
    });
    snapshot("view", |s| {
        s.type_in("vc");
    });
    snapshot("filtered", |s| {
        s.type_in("vlow\nf");
    });
    snapshot("paced", |s| {
        for (i, key) in ["\n", "cex\n", "\n"].iter().enumerate() {
            s.app.tick(Duration::from_secs(4 * (i as u64 + 1)));
            s.type_in(key);
        }
    });
    snapshot("done", |s| {
        s.type_in("\n").type_in("cstolen\n").type_in("\n\ns");
    });
}

fn any_key() -> impl Strategy<Value = KeyEvent> {
    let letters = prop::sample::select("acsxnufvtqjkgGbrh/?:[]123 é卡".chars().collect::<Vec<_>>());
    let code = prop_oneof![
        6 => letters.prop_map(KeyCode::Char),
        3 => Just(KeyCode::Enter),
        1 => any::<char>().prop_map(KeyCode::Char),
        4 => prop::sample::select(vec![
            KeyCode::Esc, KeyCode::Up, KeyCode::Down, KeyCode::Left, KeyCode::Right, KeyCode::Home, KeyCode::End,
            KeyCode::PageUp, KeyCode::PageDown, KeyCode::Backspace, KeyCode::Delete, KeyCode::Tab, KeyCode::BackTab,
            KeyCode::F(1), KeyCode::F(5), KeyCode::Insert, KeyCode::Null,
        ]),
    ];
    let modifiers = prop_oneof![
        8 => Just(KeyModifiers::NONE),
        1 => Just(KeyModifiers::CONTROL),
        1 => Just(KeyModifiers::ALT),
        1 => Just(KeyModifiers::SHIFT),
    ];
    (code, modifiers).prop_map(|(code, modifiers)| KeyEvent::new(code, modifiers))
}

type Essence = (Option<usize>, Vec<Option<Judgement>>, BTreeMap<usize, Marks>, Vec<(usize, Judgement)>, usize);

/// What a reviewer would miss if undo did not bring it back.
fn essence(s: &Session) -> Essence {
    (s.app.at, s.app.judgements.clone(), s.app.marks.clone(), s.desk.log.clone(), s.app.this_session())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_keys_at_any_size_never_panic_and_undo_restores(
        keys in prop::collection::vec(any_key(), 1..80),
        sizes in prop::collection::vec((0u16..200, 0u16..60), 1..4),
        pasted in any::<String>(),
    ) {
        let mut s = Session::new(paper(), 80, 24);
        for (i, key) in keys.iter().enumerate() {
            if i % 20 == 7 {
                let (width, height) = sizes[i / 20 % sizes.len()];
                s.size = Size { width, height };
                s.app.fit(s.size);
                s.app.paste(&pasted);
            }
            let before = essence(&s);
            let effect = s.app.handle(*key);
            let decided = match &effect {
                Effect::Decide { judgement, .. } => Some(judgement.clone()),
                _ => None,
            };
            carry_out(&mut s.app, &mut s.desk, effect);
            if let Some(judgement) = decided {
                let after = essence(&s);
                s.app.mode = Mode::Read;
                s.type_in("u");
                prop_assert_eq!(essence(&s), before.clone());
                let Mode::Read = s.app.mode else { panic!("undo left {:?}", s.app.mode) };
                // Go on as if it had not been taken back.
                let item = before.0.unwrap();
                carry_out(&mut s.app, &mut s.desk, Effect::Decide { item, judgement, seen: Seen::default() });
                prop_assert_eq!(essence(&s).3, after.3);
            }
            let states: Vec<_> = (0..5).map(|i| s.desk.state(i).judgement).collect();
            prop_assert_eq!(&s.app.judgements, &states);
            let skips = states.iter().flatten().filter(|j| j.verdict == Verdict::Skip).count();
            prop_assert_eq!((s.app.skipped(), s.app.reviewed()), (skips, states.iter().flatten().count() - skips));
            if i % 3 == 0 {
                s.screen();
            }
        }
    }
}

/// Items 0 to 4 in the order 4, 3, 2, 1, 0 from now on.
fn turned(s: &mut Session) {
    let items: Vec<Item> = s.desk.items.iter().cloned().map(|i| Item { why: vec!["ranked".into()], ..i }).collect();
    s.app.rearrange(items.into(), &[4, 3, 2, 1, 0]);
}

#[test]
fn a_new_order_leaves_what_is_done_and_what_is_on_the_screen() {
    let mut s = Session::new(paper(), 80, 24);
    s.type_in("\n");
    assert_eq!((s.app.at, s.verdicts().len()), (Some(1), 1));
    turned(&mut s);
    assert_eq!((s.app.at, s.app.reviewed()), (Some(1), 1), "the item stays, and so does what was decided");
    assert!(s.screen().contains("item 2 of 5") && s.screen().contains("why here  ranked"), "{}", s.screen());
    assert!(s.screen().contains("the queue is ranked"), "{}", s.screen());
    s.type_in("s");
    assert_eq!(s.app.at, Some(4), "then the first of the new order");
    assert!(s.screen().contains("item 3 of 5"), "{}", s.screen());
    s.type_in("\n");
    assert_eq!(s.app.at, Some(3));
    s.type_in("u");
    assert_eq!(s.app.at, Some(4), "undo goes to the item, wherever it is");
    s.type_in(":5\n");
    assert_eq!(s.app.at, Some(2), "numbers are places");
    s.press(KeyCode::Left);
    assert_eq!(s.app.at, Some(3));
}

#[test]
fn a_new_order_does_not_touch_what_is_being_typed_and_sorts_a_view() {
    let mut s = Session::new(paper(), 80, 24);
    s.type_in("/card\n");
    let view: Vec<usize> = s.app.view.as_ref().unwrap().items.clone();
    assert!(view.len() > 1 && view.is_sorted(), "{view:?}");
    s.type_in("nhalf a rem");
    let mode = s.app.mode.clone();
    turned(&mut s);
    assert_eq!((&s.app.mode, s.app.at), (&mode, Some(view[0])));
    let sorted = s.app.view.as_ref().unwrap().items.clone();
    assert_eq!(sorted[0], view[0], "the item on the screen comes before the rest");
    assert!(sorted[1..].iter().rev().is_sorted(), "{sorted:?}");
}
