use super::*;
use crate::review::{App, KeyMap, attend, carry_out};
use limbeck_artifact::dataset::Split;
use limbeck_data_curation::review::{QueueReason, Source};
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use ratatui::layout::Size;
use std::fs;
use std::path::Path;

fn queue(reviewers: u32) -> Queue {
    let item = |id: &str, answer: &str, label: Option<&str>| review::Item {
        id: id.to_string(),
        split: Split::Train,
        message: format!("message of {id}"),
        answer: answer.to_string(),
        label: label.map(str::to_string),
        rivals: Vec::new(),
        reason: QueueReason::Random,
        detail: None,
        feedback: None,
        at: None,
        shown_sha256: format!("digest of {id}"),
        source: Source::Random,
        hint: None,
        draw: None,
        copies: 0,
    };
    let items = vec![
        item("t1", "Card Arrival", Some("card_arrival")),
        item("t2", "exchange_rate", Some("exchange_rate")),
        item("t3", "sorry, what?", None),
    ];
    Queue { items, answers: Answers::Labels(vec!["card_arrival".into(), "exchange_rate".into()]), reviewers }
}

fn setup(dir: &Path, reviewer: &str) -> Setup {
    Setup {
        name: "quickstart".into(),
        queue: queue(1),
        later: None,
        store: dir.join("store"),
        files: vec![dir.join("shipped.jsonl")],
        reviewer: reviewer.into(),
        role: Role::First,
        max_label_error: 0.05,
        guidelines: String::new(),
        now: Box::new(|| "2026-03-04T10:11:12.000Z".to_string()),
    }
}

fn open_as(dir: &Path, reviewer: &str, role: Role, reviewers: u32) -> QueueDesk {
    QueueDesk::open(Setup { role, queue: queue(reviewers), ..setup(dir, reviewer) }).unwrap()
}

fn open(dir: &Path, reviewer: &str) -> QueueDesk {
    open_as(dir, reviewer, Role::First, 1)
}

fn type_in(desk: &mut QueueDesk, keys: &str) -> App {
    let mut app = App::new(desk, KeyMap::default());
    app.fit(Size { width: 80, height: 24 });
    for c in keys.chars() {
        let code = if c == '\n' { KeyCode::Enter } else { KeyCode::Char(c) };
        let effect = app.handle(KeyEvent::from(code));
        carry_out(&mut app, desk, effect);
        attend(&mut app, desk);
    }
    app
}

fn streams(dir: &Path) -> Vec<PathBuf> {
    store::streams(&dir.join("store")).unwrap()
}

#[test]
fn what_is_decided_is_found_again_by_the_next_session() {
    let dir = tempfile::tempdir().unwrap();
    let app = type_in(&mut open(dir.path(), "ada"), "\ncarr\nnsee ticket\nxunreadable\n");
    assert_eq!((app.reviewed(), app.total()), (3, 3));
    assert_eq!(fs::read_to_string(&streams(dir.path())[0]).unwrap().lines().count(), 4);

    let mut again = open(dir.path(), "ada");
    let status = again.queue().status(again.decisions());
    assert_eq!((status.reviewed, status.void.len()), (3, 0));
    assert_eq!(again.state(1).judgement.unwrap().label.as_deref(), Some("card_arrival"));
    let third = again.state(2);
    assert_eq!(third.judgement.unwrap().note.as_deref(), Some("unreadable"));
    assert_eq!(third.marks.notes, ["see ticket (ada)"]);
    let app = type_in(&mut again, "uuu");
    assert_eq!((app.reviewed(), again.history()), (1, vec![0]));
    assert_eq!(streams(dir.path()).len(), 2, "a session has a stream of its own");
    assert_eq!(open(dir.path(), "ada").history(), [0]);
}

#[test]
fn every_entry_tells_what_was_shown_and_for_how_long() {
    let dir = tempfile::tempdir().unwrap();
    type_in(&mut open(dir.path(), "ada"), "f\nu");
    let list = open(dir.path(), "ada").decisions().list().to_vec();
    let verdicts: Vec<review::Verdict> = list.iter().map(|d| d.verdict).collect();
    assert_eq!(verdicts, [review::Verdict::Flag, review::Verdict::Accept, review::Verdict::Undo]);
    assert_eq!(list[2].of.as_deref(), Some(list[1].id.as_str()));
    assert!(list[..2].iter().all(|d| d.dwell_ms.is_some() && d.suggestion_sha256.is_some()), "{list:?}");
    assert!(list.iter().all(|d| d.shown_sha256 == "digest of t1" && d.clone().sealed() == *d));
}

#[test]
fn nobody_takes_back_what_another_decided() {
    let dir = tempfile::tempdir().unwrap();
    type_in(&mut open(dir.path(), "ada"), "\n\n");
    let mut desk = open(dir.path(), "ben");
    assert_eq!(desk.history(), Vec::<usize>::new());
    let app = type_in(&mut desk, "u");
    assert_eq!(app.reviewed(), 2);
}

#[test]
fn two_at_once_hear_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ada, mut ben) = (open(dir.path(), "ada"), open(dir.path(), "ben"));
    let mut app = type_in(&mut ben, "");
    type_in(&mut ada, "\n\n");
    let (changed, trouble) = ben.poll();
    assert_eq!((changed.clone(), trouble), (vec![0, 1], None));
    changed.into_iter().for_each(|i| app.changed(i, ben.state(i)));
    assert_eq!(app.reviewed(), 2);
    assert!(app.notice.as_ref().unwrap().text.contains("meanwhile"));
    assert_eq!(ben.poll().0, Vec::<usize>::new());
    // What ben decides in sight of ada's stands, though their clocks are equal.
    type_in(&mut ben, "xspam\n");
    ada.poll();
    assert_eq!(ada.state(2).judgement.unwrap().verdict, Verdict::Reject);
}

#[test]
fn blind_reviewers_do_not_see_each_other_and_a_third_settles() {
    let dir = tempfile::tempdir().unwrap();
    // Accept, correct and reject against accept, accept and reject.
    type_in(&mut open_as(dir.path(), "ada", Role::Blind, 2), "\ncarr\nxspam\n");
    let mut ben = open_as(dir.path(), "ben", Role::Blind, 2);
    assert_eq!(ben.state(1), State::default());
    assert!(ben.similar(0).is_none_or(|alike| alike.iter().all(|a| !a.decided)));
    type_in(&mut ben, "nhard\n\n\nxodd\n");
    let status = ben.queue().status(ben.decisions());
    let train = status.per_split[&Split::Train];
    assert_eq!((train.reviewed, train.rejected, train.disputed, train.awaiting), (2, 1, 1, 0));
    let found = ben.agreement();
    assert_eq!((found.items, found.pairs, found.equal), (3, 3, 2));
    assert!(found.krippendorff_alpha.is_some_and(|a| a > 0.0 && a < 1.0));

    // Neither of the two may settle it.
    assert!((0..3).all(|i| open_as(dir.path(), "ben", Role::Adjudicate, 2).state(i).closed));
    let mut cat = open_as(dir.path(), "cat", Role::Adjudicate, 2);
    assert_eq!((0..3).map(|i| cat.state(i).closed).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(cat.state(1).marks.votes, ["ada: card_arrival", "ben: accepts"]);
    assert_eq!(cat.items()[1].instead, [("card_arrival".to_string(), "ada".to_string())]);
    let app = type_in(&mut cat, "1");
    assert_eq!(app.at, None);
    let status = cat.queue().status(cat.decisions());
    assert_eq!((status.reviewed, status.per_split[&Split::Train].disputed), (3, 0));
    let stats = agree::reviewers(cat.queue(), cat.decisions());
    let of = |name: &str| stats.iter().find(|r| r.name == name).unwrap();
    assert_eq!((of("ada").shared, of("ada").as_settled, of("ben").as_settled), (3, 3, 2));
    assert_eq!(of("cat").adjudicated, 1);
}

#[test]
fn a_blind_second_pass_takes_what_one_has_judged_and_a_dispute_counts_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    type_in(&mut open(dir.path(), "ada"), "\n\n");
    let mut ben = open_as(dir.path(), "ben", Role::Blind, 1);
    assert_eq!((0..3).map(|i| ben.state(i).closed).collect::<Vec<_>>(), [false, false, true]);
    type_in(&mut ben, "\ncarr\n");
    let status = ben.queue().status(ben.decisions());
    assert_eq!((status.reviewed, status.per_split[&Split::Train].disputed), (1, 1));
}

#[test]
fn a_torn_last_line_is_left_alone_and_the_next_session_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    type_in(&mut open(dir.path(), "ada"), "\n");
    let path = streams(dir.path())[0].clone();
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{whole}{{\"id\":\"12\",\"at\":\"20")).unwrap();
    let app = type_in(&mut open(dir.path(), "ada"), "\n");
    assert_eq!(app.reviewed(), 2);
    assert_eq!(open(dir.path(), "ada").decisions().list().len(), 2);
}

#[test]
fn a_decision_about_another_text_is_asked_again_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let old = Decision::new("2026-01-01T00:00:00Z", "ada", "t1", review::Verdict::Accept, None, "other", None);
    fs::write(dir.path().join("shipped.jsonl"), old.to_line() + "\n").unwrap();
    let desk = open(dir.path(), "ada");
    assert_eq!((desk.state(0).judgement, desk.state(0).closed), (None, false));
    assert!(desk.items()[0].why.iter().any(|why| why.contains("another text")));
}

#[test]
fn half_a_queue_changes_hands_under_the_running_screen() {
    let dir = tempfile::tempdir().unwrap();
    let (ada, mut ben) = (open(dir.path(), "ada"), open(dir.path(), "ben"));
    let open_for = |desk: &QueueDesk| (0..3).filter(|i| !desk.state(*i).closed).collect::<Vec<_>>();
    assert_eq!((open_for(&ada), open_for(&ben)), (vec![0, 1, 2], vec![0, 1, 2]));
    let entry = |share| HandOver { at: "2026-01-01T00:00:00Z".into(), from: "ada".into(), to: "ben".into(), share };
    handover::hand_over(&dir.path().join("store"), &entry(0.5)).unwrap();
    assert_eq!(ben.poll().0, [0, 1, 2]);
    let both = [open_for(&ben), open_for(&open(dir.path(), "ada"))].concat();
    assert_eq!(both.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(both.len(), 3, "each is one's");
    assert_eq!(open_for(&open(dir.path(), "cat")).len(), 3);
}

/// A queue of bookings: one answered well, one without a date that the message has, one in words.
fn bookings(dir: &Path, reviewer: &str, role: Role) -> QueueDesk {
    let schema = r#"{"type":"object","properties":{"date":{"type":"string"},"people":{"type":"string"}},
        "additionalProperties":false}"#;
    let answers = Answers::of(&[], Some(schema)).unwrap();
    let texts = ["tomorrow, for 4", "for 2 on Friday", "for 3"];
    let recorded = [r#"{"date":"tomorrow","people":"4"}"#, r#"{"people":"2"}"#, "Three people."];
    let mut queue = queue(1);
    for ((item, text), answer) in queue.items.iter_mut().zip(texts).zip(recorded) {
        item.message = text.to_string();
        item.answer = answer.to_string();
        item.label = answers.read(answer).ok().map(|label| label.into_owned());
    }
    queue.answers = answers;
    QueueDesk::open(Setup { name: "bookings".into(), queue, role, files: Vec::new(), ..setup(dir, reviewer) }).unwrap()
}

#[test]
fn fields_are_accepted_corrected_and_filled_in() {
    let dir = tempfile::tempdir().unwrap();
    // As it is; a date out of the message; the number out of the message in place of a sentence.
    let app = type_in(&mut bookings(dir.path(), "ada", Role::First), "\n1wf\ns2w3\ns");
    assert_eq!((app.reviewed(), app.total()), (3, 3));
    let again = bookings(dir.path(), "ada", Role::First);
    let label = |i: usize| again.state(i).judgement.unwrap().label.unwrap();
    assert_eq!(label(0), r#"{"date":"tomorrow","people":"4"}"#);
    assert_eq!(
        (label(1), label(2)),
        (r#"{"date":"Friday","people":"2"}"#.to_string(), r#"{"people":"3"}"#.to_string())
    );
    let status = again.queue().status(again.decisions());
    assert_eq!((status.reviewed, status.void.len()), (3, 0));
}

#[test]
fn a_third_settles_fields_by_taking_one_reviewers_value() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |reviewer: &str, label: &str| {
        let made = Decision::new(
            "2026-03-06T00:00:00Z",
            reviewer,
            "t1",
            review::Verdict::Correct,
            Some(label),
            "digest of t1",
            None,
        );
        Decision { pass: Some(Pass::Blind), ..made }.sealed()
    };
    for (reviewer, label) in [("cat", r#"{"date":"tomorrow","people":"5"}"#), ("dan", r#"{"people":"4"}"#)] {
        Stream::new(&dir.path().join("store"), reviewer, "2026-03-06T00:00:00Z")
            .append(&entry(reviewer, label))
            .unwrap();
    }
    let mut eve = bookings(dir.path(), "eve", Role::Adjudicate);
    assert!(!eve.state(0).closed, "they differ");
    let app = type_in(&mut eve, "2os");
    assert_eq!(app.at, None);
    assert_eq!(eve.state(0).judgement.unwrap().label.as_deref(), Some(r#"{"date":"tomorrow","people":"5"}"#));
}

/// A ranking that says the second item's label is wrong, of a desk that is open already.
#[test]
fn a_ranking_comes_while_somebody_reviews() {
    let dir = tempfile::tempdir().unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let mut plain = queue(1);
    rank::plain(&mut plain, 1);
    let to_rank = plain.clone();
    let later = Later::begin(move |told| {
        told(0.25);
        wait.recv().unwrap();
        let posteriors: Vec<_> =
            to_rank.items.iter().map(|i| Some(vec![0.9, 0.1]).filter(|_| i.label.is_some())).collect();
        let plan = rank::RankPlan { random_share: 0.0, seed: 1 };
        let ranking = rank::rank(&to_rank, &posteriors, &HashMap::new(), &plan, "k");
        Ok(crate::review::Ranked { ranking, not_kept: Some("the disk is full".into()) })
    });
    let later = later.wait(std::time::Duration::ZERO).err().unwrap();
    let mut desk = QueueDesk::open(Setup { queue: plain, later: Some(later), ..setup(dir.path(), "ada") }).unwrap();
    while !desk.gauge().short.starts_with("ranking, 25 %") {
        std::thread::yield_now();
    }
    let mut app = App::new(&desk, KeyMap::default());
    app.fit(Size { width: 80, height: 24 });
    let first = app.item().unwrap().id.clone();
    let effect = app.handle(KeyEvent::from(KeyCode::Char('s')));
    carry_out(&mut app, &mut desk, effect);
    let (on_screen, messages) = (app.item().unwrap().id.clone(), desk.items());
    let certificate = desk.certificate();
    go.send(()).unwrap();
    let trouble = loop {
        let (_, trouble) = desk.poll();
        if desk.rearranged() {
            break trouble;
        }
        std::thread::yield_now();
    };
    assert_eq!(trouble.as_deref(), Some("the disk is full"));
    assert!(!desk.is_ranking() && !desk.gauge().short.starts_with("ranking"));
    app.rearrange(desk.items(), &desk.order());
    assert_eq!(app.item().unwrap().id, on_screen);
    assert_eq!(app.skipped(), 1);
    assert!(desk.items().iter().zip(messages.iter()).all(|(a, b)| a.id == b.id && a.message == b.message));
    assert_eq!(desk.certificate(), certificate, "the draw is the same");
    let open = desk.queue().items.iter().position(|i| i.id == "t2").unwrap();
    assert!(desk.items()[open].why.iter().any(|why| why == "probably wrong"), "{:?}", desk.items()[open].why);
    let by_place: Vec<&str> = desk.order().iter().map(|i| desk.queue().items[*i as usize].id.as_str()).collect();
    assert_eq!(by_place[2], "t1", "what the model agrees with comes last: {by_place:?}");
    assert_eq!(desk.decisions().of(&first).votes.len(), 1);
}

#[test]
fn a_ranking_that_fails_leaves_the_order_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    for (later, says) in [
        (Later::begin(|_| Err("no left_out.jsonl".into())), "no left_out.jsonl"),
        (Later::begin(|_| std::panic::panic_any("a defect")), "broke off"),
    ] {
        let mut desk = QueueDesk::open(Setup { later: Some(later), ..setup(dir.path(), "ada") }).unwrap();
        let trouble = loop {
            if let (_, Some(trouble)) = desk.poll() {
                break trouble;
            }
        };
        assert!(trouble.contains(says), "{trouble}");
        assert!(!desk.rearranged() && !desk.is_ranking());
    }
}
