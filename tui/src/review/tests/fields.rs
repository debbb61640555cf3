//! The form of answers that are fields.

use super::*;
use limbeck_artifact::schema::Schema;

const SCHEMA: &str = r#"{
  "type": "object",
  "properties": {
    "people": {"type": "integer", "minimum": 1, "maximum": 20, "description": "guests, children included"},
    "date": {"type": "string", "description": "as the guest says it"},
    "time": {"type": "string"},
    "first_name": {"type": "string"},
    "last_name": {"type": "string"},
    "area": {"enum": ["inside", "outside", "bar"]},
    "pets": {"type": "boolean"},
    "allergies": {"type": "array", "items": {"type": "string"}}
  },
  "required": ["people"],
  "additionalProperties": false
}"#;

pub fn bookings() -> Paper {
    let items = vec![
        item(
            "Good evening, I would like a table for 4 tomorrow at 7 pm, in the name of Ann Smith. We are outside people! \
             No nuts and no shellfish, please; Ann can't have them.",
            r#"{"people": 4, "date": "tomorrow", "time": "7pm", "first_name": "Ann", "last_name": "Smith", "allergies": ["nuts", "shellfish"]}"#,
        ),
        item("We'd be six.", r#"{"people": "six"}"#),
        item("\u{1b}[2Jfour \u{202e}at 7", "Four people at seven \u{1b}[5m"),
        item(&"We come at 8. ".repeat(120), "```json\n{\"people\": 2, \"time\": \"8\", \"seat\": \"window\"}\n```"),
        item("", r#"{"people": 1}"#),
    ];
    let mut items: Vec<Item> = items.into_iter().map(|item| Item { instead: Vec::new(), ..item }).collect();
    items[0].instead =
        vec![(r#"{"people": 5, "date": "tomorrow"}"#.into(), "ben".into()), (r#"{"people": 6}"#.into(), "cat".into())];
    let form = Form::Fields(Schema::parse(SCHEMA).unwrap());
    Paper { items: items.into(), labels: Vec::new().into(), form, log: Vec::new(), full: false }
}

fn session() -> Session {
    Session::new(bookings(), 80, 24)
}

const FIRST: &str = r#"{"people":4,"date":"tomorrow","time":"7pm","first_name":"Ann","last_name":"Smith","allergies":["nuts","shellfish"]}"#;

#[test]
fn a_valid_answer_is_accepted_with_one_key_in_canonical_form() {
    let mut s = session();
    s.type_in("\n");
    assert_eq!(s.verdicts(), [(0, Verdict::Accept, Some(FIRST), None)]);
    s.type_in("\n");
    assert_eq!((s.verdicts().len(), s.app.at), (1, Some(1)));
    assert!(s.screen().contains("people: a whole number is needed, not \"six\""), "{}", s.screen());
}

#[test]
fn a_field_is_typed_and_checked_letter_by_letter() {
    let mut s = session();
    s.type_in("\nc\n");
    assert!(s.screen().contains("a whole number is needed"));
    s.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL)).type_in("60");
    assert!(s.screen().contains("1 to 20 is needed, not 60"), "{}", s.screen());
    s.press(KeyCode::Backspace);
    assert!(!s.screen().contains("needed"), "{}", s.screen());
    s.type_in("\ns");
    assert_eq!(s.verdicts()[1], (1, Verdict::Correct, Some(r#"{"people":6}"#), None));
}

#[test]
fn what_is_wrong_is_not_saved_and_says_why() {
    let mut s = session();
    s.type_in("1dds");
    assert_eq!(s.verdicts(), []);
    assert!(s.screen().contains("not saved: people: it must be filled in"), "{}", s.screen());
    s.type_in("us");
    assert_eq!(s.verdicts(), [(0, Verdict::Accept, Some(FIRST), None)], "taken back, it is the recorded answer again");
}

#[test]
fn words_are_taken_out_of_the_message() {
    let mut s = session();
    // The message says 7pm in other words, which are chosen to begin with.
    s.type_in("3w");
    assert!(s.screen().contains("enter takes these words"), "{}", s.screen());
    assert!(s.screen().contains("3 time        7 pm"), "{}", s.screen());
    s.type_in("\ns");
    assert_eq!(s.verdicts()[0].2.unwrap(), FIRST.replace("7pm", "7 pm"));
    let mut s = session();
    s.type_in("8wann").key(KeyEvent::new(KeyCode::Right, KeyModifiers::SHIFT));
    s.type_in("\n").type_in("s");
    assert!(
        s.verdicts()[0].2.unwrap().contains(r#""allergies":["nuts","shellfish","Ann Smith"]"#),
        "{:?}",
        s.verdicts()
    );
}

#[test]
fn a_number_that_should_be_a_text_is_mended_by_looking_at_it() {
    let mut s = session();
    s.desk.items = vec![item("at 4", r#"{"people": 2, "time": 4}"#)].into();
    let mut s = Session::new(s.desk, 80, 24);
    s.type_in("\n");
    assert!(s.screen().contains("time: a text is needed, not 4"), "{}", s.screen());
    s.type_in("c\n\ns");
    assert_eq!(s.verdicts(), [(0, Verdict::Correct, Some(r#"{"people":2,"time":"4"}"#), None)]);
}

#[test]
fn choices_are_gone_through_and_others_are_taken() {
    let mut s = session();
    s.type_in("6").press(KeyCode::Right).press(KeyCode::Right);
    s.type_in("7").press(KeyCode::Left).type_in("1o");
    assert!(s.screen().contains("1 people      5"), "{}", s.screen());
    s.type_in("s");
    let label = s.verdicts()[0].2.unwrap().to_string();
    assert!(label.contains(r#""people":5,"#) && label.contains(r#""area":"outside","pets":false"#), "{label}");
    s.type_in("u1oooo");
    assert!(s.screen().contains("cat: 6"), "three times round: {}", s.screen());
    s.press(KeyCode::Esc).type_in("4").press(KeyCode::Right);
    assert!(s.screen().contains("no list to choose from"));
}

#[test]
fn an_unreadable_answer_opens_the_form_empty_with_the_answer_beside_it() {
    let mut s = session();
    s.type_in("ss\n");
    assert_eq!(s.verdicts().len(), 2);
    let screen = s.type_in("c").screen();
    assert!(
        screen.contains("recorded    Four people at seven \\u{1b}[5m") && screen.contains("the answer is no JSON"),
        "{screen}"
    );
    s.type_in("w\n");
    assert!(s.screen().contains("a whole number is needed,"), "{}", s.screen());
    s.type_in("\n").key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL)).type_in("4");
    s.press(KeyCode::Tab).press(KeyCode::Down).type_in("w7\n");
    // Saved from within a field that is typed into.
    s.type_in("4\nAda").key(KeyEvent::new(KeyCode::Char('s'), KeyModifiers::CONTROL));
    assert_eq!(s.verdicts()[2], (2, Verdict::Correct, Some(r#"{"people":4,"time":"7","first_name":"Ada"}"#), None));
}

#[test]
fn a_field_that_the_schema_does_not_know_can_only_go() {
    let mut s = session();
    s.type_in("sss\n");
    assert_eq!((s.verdicts().len(), s.app.at), (3, Some(3)));
    s.type_in("c");
    assert!(s.screen().contains("not in the schema"), "{}", s.screen());
    s.type_in("ds");
    assert_eq!(s.verdicts()[3], (3, Verdict::Correct, Some(r#"{"people":2,"time":"8"}"#), None));
}

#[test]
fn what_was_changed_and_left_is_there_again() {
    let mut s = session();
    s.type_in("4\nx").press(KeyCode::Esc).press(KeyCode::Esc);
    assert!(!s.app.drafts.contains_key(&0), "left as it was");
    s.type_in("4\nx\n").press(KeyCode::Esc);
    assert!(s.screen().contains("nothing is saved"));
    s.press(KeyCode::Right).press(KeyCode::Left).type_in("c");
    assert!(s.screen().contains("4 first_name  Annx") && s.screen().contains("is back"), "{}", s.screen());
    s.type_in("us");
    assert_eq!(s.verdicts()[0].1, Verdict::Accept);
    assert!(s.app.drafts.is_empty());
}

#[test]
fn half_a_correction_survives_a_lost_terminal() {
    let mut s = session();
    s.type_in("4\nabel");
    let effect = s.app.half_typed();
    carry_out(&mut s.app, &mut s.desk, effect);
    assert_eq!(s.verdicts()[0].1, Verdict::Note);
    let mut again = Session::new(s.desk, 80, 24);
    assert!(again.screen().contains("a correction was left in the middle"), "{}", again.screen());
    again.type_in("c");
    assert!(again.screen().contains("4 first_name  Annabel"), "{}", again.screen());
    again.type_in("s");
    assert!(again.verdicts()[1].2.unwrap().contains("Annabel"));
    again.type_in("u");
    let none = again.app.half_typed();
    assert_eq!(none, Effect::None);
}

#[test]
fn a_full_disk_costs_nothing_that_was_typed() {
    let mut s = session();
    s.desk.full = true;
    s.type_in("4\nx\ns");
    assert!(s.screen().contains("not saved: failed to append"));
    s.desk.full = false;
    s.type_in("cs");
    assert!(s.verdicts()[0].2.unwrap().contains("Annx"));
}

#[test]
fn pasted_text_is_a_value_and_no_keys() {
    let mut s = session();
    s.type_in("c");
    s.app.paste("s\u{1b}[2J\nq");
    s.app.paste("1");
    s.type_in("\n");
    assert!(s.screen().contains("not \"s[2J q1\"") && s.verdicts().is_empty(), "{}", s.screen());
    s.type_in("w");
    s.app.paste("s");
    assert_eq!(s.verdicts(), []);
}

#[test]
fn help_and_guidelines_come_back_to_the_form() {
    let mut s = session();
    s.type_in("4\nx\n?");
    assert!(
        s.screen().contains("form: save the answer as it stands")
            || s.press(KeyCode::End).screen().contains("form: save")
    );
    s.press(KeyCode::Esc);
    assert!(s.screen().contains("Annx"));
    s.type_in("gzs");
    assert!(s.verdicts()[0].2.unwrap().contains("Annx"));
}

#[test]
fn no_cell_of_a_hostile_form_holds_what_a_terminal_obeys() {
    let mut s = session();
    s.type_in("ss");
    for keys in ["", "c", "w", "\u{1b}", "\n\u{1b}", "gx", "\u{1b}"] {
        let screen = s.type_in(keys).screen();
        assert!(!screen.chars().any(|c| c != '\n' && crate::text::hides(c)), "{screen}");
    }
}

const SIZES: [(u16, u16); 3] = [(80, 24), (120, 40), (48, 16)];

fn snapshot(name: &str, keys: impl Fn(&mut Session)) {
    for (width, height) in SIZES {
        let mut s = Session::new(bookings(), width, height);
        attend(&mut s.app, &mut s.desk);
        keys(&mut s);
        insta::assert_snapshot!(format!("fields_{name}_{width}x{height}"), s.screen());
    }
}

#[test]
fn screens_read_well() {
    snapshot("read", |_| {});
    snapshot("form", |s| {
        s.type_in("3");
    });
    snapshot("typing", |s| {
        s.type_in("1\n").press(KeyCode::Backspace).type_in("44");
    });
    snapshot("words", |s| {
        s.type_in("3w7 ").press(KeyCode::Right);
    });
    snapshot("unreadable", |s| {
        s.type_in("ssc");
    });
    snapshot("long", |s| {
        s.type_in("sss");
    });
    let (mut s, mut plain) = (session(), session());
    insta::assert_snapshot!("fields_styles_colour", s.type_in("3").styled(true));
    insta::assert_snapshot!("fields_styles_none", plain.type_in("3").styled(false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_keys_at_any_size_never_panic_and_only_valid_answers_are_saved(
        keys in prop::collection::vec(any_key(), 1..80),
        sizes in prop::collection::vec((0u16..160, 0u16..50), 1..4),
        pasted in any::<String>(),
    ) {
        let mut s = session();
        let schema = Schema::parse(SCHEMA).unwrap();
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
        for (_, verdict, label, _) in s.verdicts() {
            if matches!(verdict, Verdict::Accept | Verdict::Correct) {
                let value = schema.read(label.unwrap()).unwrap();
                prop_assert_eq!(schema.check(&value), []);
                prop_assert_eq!(schema.canonical(&value), label.unwrap());
            }
        }
    }
}
