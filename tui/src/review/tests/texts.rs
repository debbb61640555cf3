//! The editor of answers that are free text.

use super::*;

const ANSWER: &str = "Dear Ann,\n\nthank you for your message. Our kitchen is open until nine, and the bar until midnight.\n\nKind regards,\nthe team";

pub fn letters() -> Paper {
    let items = vec![
        item("How long is your kitchen open on Sundays?", ANSWER),
        item("\u{1b}[2Jhostile", "zero\u{200b}width and \u{1b}[31mred\u{1b}[0m\r\nend"),
        item(&"Is it open? ".repeat(100), &"We are open from noon. ".repeat(80)),
        item("Nothing was said.", "  "),
    ];
    let items: Vec<Item> = items.into_iter().map(|item| Item { instead: Vec::new(), ..item }).collect();
    Paper { items: items.into(), labels: Vec::new().into(), form: Form::Text, log: Vec::new(), full: false }
}

fn session() -> Session {
    Session::new(letters(), 80, 24)
}

fn ctrl(c: char) -> KeyEvent {
    KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)
}

#[test]
fn a_text_is_accepted_as_it_is_and_an_empty_one_not() {
    let mut s = session();
    s.type_in("\n\n\n");
    assert_eq!(s.verdicts()[0], (0, Verdict::Accept, Some(ANSWER), None));
    assert_eq!(s.verdicts()[1].2, Some("zero\u{200b}width and \u{1b}[31mred\u{1b}[0m\r\nend"));
    s.type_in("\n");
    assert_eq!((s.verdicts().len(), s.app.at), (3, Some(3)));
    assert!(s.screen().contains("there is no answer: correct it"), "{}", s.screen());
}

#[test]
fn a_correction_is_written_and_its_changes_are_shown() {
    let mut s = session();
    s.type_in("c");
    assert!(s.screen().contains("no changes yet"), "{}", s.screen());
    for _ in 0..2 {
        s.press(KeyCode::Down);
    }
    s.press(KeyCode::End);
    s.key(ctrl('w'));
    s.type_in("one.");
    let screen = s.screen();
    assert!(screen.contains("[-midnight-]{+one+}"), "{screen}");
    assert!(screen.contains("changes  [-1 word-] {+1 word+}"), "{screen}");
    s.key(ctrl('s'));
    let want = ANSWER.replace("midnight.", "one.");
    assert_eq!(s.verdicts(), [(0, Verdict::Correct, Some(want.as_str()), None)]);
    s.type_in("u");
    assert_eq!((s.verdicts().len(), s.app.at), (0, Some(0)));
}

#[test]
fn letters_are_text_and_undo_is_the_editors_own() {
    let mut s = session();
    s.type_in("cq? sx");
    assert!(s.screen().contains("q? sxDear Ann"), "{}", s.screen());
    s.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::ALT)).key(ctrl('7'));
    assert!(s.screen().contains(" Dear Ann"));
    s.key(ctrl('7'));
    assert!(s.screen().contains("there is nothing to take back"));
    s.key(KeyEvent::new(KeyCode::Char('e'), KeyModifiers::ALT));
    assert!(s.screen().contains(" q? Dear Ann"), "{}", s.screen());
    assert_eq!(s.verdicts(), []);
    s.key(ctrl('7')).key(ctrl('s'));
    assert_eq!(s.verdicts()[0].1, Verdict::Accept, "nothing was changed");
}

#[test]
fn what_was_written_survives_leaving_a_full_disk_and_a_lost_terminal() {
    let mut s = session();
    s.type_in("cNB: ").press(KeyCode::Esc);
    assert!(s.screen().contains("nothing is saved"));
    s.desk.full = true;
    s.type_in("c").key(ctrl('s'));
    assert!(s.screen().contains("not saved: failed"));
    s.desk.full = false;
    s.type_in("c");
    assert!(s.screen().contains("NB: Dear Ann"), "{}", s.screen());
    let effect = s.app.half_typed();
    carry_out(&mut s.app, &mut s.desk, effect);
    let mut again = Session::new(s.desk, 80, 24);
    again.type_in("c");
    assert!(again.screen().contains("NB: Dear Ann") && again.screen().contains("is back"), "{}", again.screen());
    again.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::ALT)).key(ctrl('s'));
    assert_eq!(again.verdicts()[1], (0, Verdict::Accept, Some(ANSWER), None));
}

#[test]
fn an_empty_answer_is_not_saved() {
    let mut s = session();
    s.type_in("sssc").key(ctrl('s'));
    assert!(s.screen().contains("the answer is empty"), "{}", s.screen());
    s.app.paste("It says:\r\nnothing.\u{1b}[2J");
    s.key(ctrl('s'));
    assert_eq!(s.verdicts()[3].2.unwrap().trim(), "It says:\nnothing.[2J");
}

#[test]
fn a_long_answer_is_read_to_its_end() {
    let mut s = session();
    s.type_in("ss");
    assert!(s.screen().contains(", rows 1-"), "{}", s.screen());
    s.press(KeyCode::End);
    assert!(s.screen().contains("-24 of 24 ──"), "{}", s.screen());
    s.press(KeyCode::Home);
    assert!(s.screen().contains(", rows 1-"));
    s.type_in("c").press(KeyCode::PageDown).press(KeyCode::PageDown).type_in("here");
    assert!(s.screen().contains("{+here"), "the changes follow the cursor: {}", s.screen());
}

#[test]
fn no_cell_of_a_hostile_text_holds_what_a_terminal_obeys() {
    let mut s = session();
    s.type_in("s");
    for keys in ["", "c", "x", "\n"] {
        let screen = s.type_in(keys).screen();
        assert!(!screen.chars().any(|c| c != '\n' && crate::text::hides(c)), "{screen}");
    }
    s.app.paste("\u{202e}\u{1b}]0;x\u{7}\u{9b}1m");
    let screen = s.screen();
    assert!(
        screen.contains("\\u{202e}]0;x1m") && !screen.chars().any(|c| c != '\n' && crate::text::hides(c)),
        "{screen}"
    );
}

#[test]
fn screens_read_well() {
    let snapshot = |name: &str, keys: &dyn Fn(&mut Session)| {
        for (width, height) in [(80, 24), (120, 40), (48, 14)] {
            let mut s = Session::new(letters(), width, height);
            attend(&mut s.app, &mut s.desk);
            keys(&mut s);
            insta::assert_snapshot!(format!("text_{name}_{width}x{height}"), s.screen());
        }
    };
    snapshot("read", &|_| {});
    snapshot("long", &|s| {
        s.type_in("ss");
    });
    snapshot("write", &|s| {
        s.type_in("c").press(KeyCode::Down).press(KeyCode::Down).press(KeyCode::End).key(ctrl('w')).type_in("one.");
    });
    let change = |s: &mut Session, colour: bool| {
        s.type_in("c").press(KeyCode::End).key(ctrl('w')).type_in("Ben,");
        s.styled(colour)
    };
    insta::assert_snapshot!("text_styles_colour", change(&mut session(), true));
    insta::assert_snapshot!("text_styles_none", change(&mut session(), false));
}

#[test]
fn a_key_right_after_a_paste_finds_the_text_laid_out() {
    let mut s = session();
    s.type_in("c");
    // Seven of two bytes: the third row of what was there before begins in the middle of one.
    s.app.paste("ééééééé");
    s.press(KeyCode::Up);
    assert!(s.screen().contains("ééééééé"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_keys_at_any_size_never_panic(
        keys in prop::collection::vec(any_key(), 1..80),
        sizes in prop::collection::vec((0u16..160, 0u16..50), 1..4),
        pasted in any::<String>(),
    ) {
        let mut s = session();
        for (i, key) in keys.iter().enumerate() {
            if i % 20 == 7 {
                let (width, height) = sizes[i / 20 % sizes.len()];
                s.size = Size { width, height };
                s.app.fit(s.size);
                s.app.paste(&pasted);
            }
            s.key(*key);
            if i % 3 == 0 {
                s.screen();
            }
        }
        let held = s.verdicts().iter().all(|(_, v, label, _)| !matches!(v, Verdict::Accept | Verdict::Correct) || !label.unwrap().trim().is_empty());
        prop_assert!(held);
    }
}
