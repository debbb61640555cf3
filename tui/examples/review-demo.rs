//! The review screen over made-up messages, to be tried by hand: `cargo run --release -p limbeck-tui --example review-demo --
//! decisions.txt [labels|fields|text] [items]`. Judgements are appended to the named file, one line each. Or over the queue of
//! a curated folder: `review-demo STORE queue RUN/curate`, decisions in the store.

use limbeck_artifact::files::append_line;
use limbeck_artifact::schema::Schema;
use limbeck_data_curation::review;
use limbeck_tui::review::{
    Desk, DeskError, Form, Item, Judgement, KeyMap, Marks, Options, QueueDesk, Role, Seen, Setup, State, Verdict, run,
};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

struct Demo {
    items: Arc<[Item]>,
    labels: Arc<[String]>,
    form: Form,
    log: PathBuf,
    made: Vec<(usize, Judgement)>,
}

impl Demo {
    fn append(&self, line: String) -> Result<(), DeskError> {
        append_line(&self.log, &line).map_err(|e| DeskError(format!("failed to append to {}: {e}", self.log.display())))
    }
}

impl Desk for Demo {
    fn name(&self) -> &str {
        "demo"
    }

    fn items(&self) -> Arc<[Item]> {
        self.items.clone()
    }

    fn form(&self) -> Form {
        self.form.clone()
    }

    fn labels(&self) -> Arc<[String]> {
        self.labels.clone()
    }

    fn state(&self, item: usize) -> State {
        let of_item = || self.made.iter().filter(|(of, _)| *of == item).map(|(_, judgement)| judgement);
        let judgement = of_item().rfind(|j| j.verdict.judges()).cloned();
        let notes = of_item().filter(|j| j.verdict == Verdict::Note).filter_map(|j| j.note.clone()).collect();
        State { closed: judgement.is_some(), judgement, marks: Marks { notes, ..Marks::default() } }
    }

    fn history(&self) -> Vec<usize> {
        self.made.iter().map(|(item, _)| *item).collect()
    }

    fn decide(&mut self, item: usize, judgement: &Judgement, _: &Seen) -> Result<(), DeskError> {
        self.append(format!("{item} {judgement:?}"))?;
        self.made.push((item, judgement.clone()));
        Ok(())
    }

    fn undo(&mut self, item: usize) -> Result<(), DeskError> {
        self.append(format!("{item} undo"))?;
        if let Some(last) = self.made.iter().rposition(|(of, _)| *of == item) {
            self.made.remove(last);
        }
        Ok(())
    }
}

const MESSAGES: [(&str, &str, &str); 12] = [
    ("I ordered my card two weeks ago and it still has not arrived. What should I do?", "card_arrival", ""),
    (
        "\u{1b}[2J\u{1b}[H\u{1b}]0;owned\u{7}\u{1b}[31mYour terminal is mine\u{1b}[0m \u{9b}5m and \u{8}\u{8}\u{8}back",
        "lost_or_stolen_card",
        "thumbs down",
    ),
    ("invoice_\u{202e}gpj.exe and \u{2066}isolated\u{2069} text, right to left: שלום מה שלומך", "card_not_working", ""),
    (
        "pay\u{200b}pal \u{feff}zero\u{200d}width, soft\u{ad}hyphen, tags \u{e0041}\u{e0042}\u{e0043}, blank \u{3164} letters",
        "exchange_rate",
        "",
    ),
    (
        "Z\u{335}\u{322}\u{327}\u{321}\u{35d}\u{31b}\u{335}\u{322}\u{327}\u{321}\u{35d}\u{31b}a\u{335}\u{322}\u{327}\u{321}\u{35d}\u{31b}\u{335}\u{322}lgo",
        "card_about_to_expire",
        "",
    ),
    (
        "我的卡两周前就寄出了,到现在还没有收到,请问我应该怎么办?我需要在下周出国之前拿到这张卡。カードが届きません。카드가 도착하지 않았습니다.",
        "card_delivery_estimate",
        "customer: \"not what I asked\"",
    ),
    (
        "Family 👩\u{200d}👩\u{200d}👧\u{200d}👦 flag 🇩🇪 heart ❤\u{fe0f} keycap 1\u{fe0f}\u{20e3} skin 👍🏽",
        "card_arrival",
        "",
    ),
    ("", "card_arrival", ""),
    ("tabs\there\tand\r\nWindows line ends\r\n\r\n\r\nand a lone \r return", "pending_card_payment", ""),
    ("WORD", "not a label \u{1b}[5mblinking", ""),
    ("LONG", "cash_withdrawal_charge", ""),
    ("\\u{1b} spelled out by the sender, not an escape: \u{1b}", "refund_not_showing_up", ""),
];

const BOOKING: &str = r#"{
  "type": "object",
  "properties": {
    "people": {"type": "integer", "minimum": 1, "maximum": 20, "description": "guests, children included"},
    "date": {"type": "string", "description": "as the guest says it"},
    "time": {"type": "string", "description": "as the guest says it"},
    "first_name": {"type": "string"},
    "last_name": {"type": "string"},
    "area": {"enum": ["inside", "outside", "bar"]},
    "pets": {"type": "boolean"},
    "allergies": {"type": "array", "items": {"type": "string"}}
  },
  "required": ["people"],
  "additionalProperties": false
}"#;

/// Bookings and what a model made of them; about one in three is wrong somewhere.
const BOOKINGS: [(&str, &str); 10] = [
    (
        "Hi, a table for 4 tomorrow at 7 pm please. The name is Ann Smith.",
        r#"{"people":4,"date":"tomorrow","time":"7 pm","first_name":"Ann","last_name":"Smith"}"#,
    ),
    (
        "We'd like to come on the 3rd of May, six of us, around half past eight.",
        r#"{"people":6,"date":"3rd of May","time":"half past eight"}"#,
    ),
    (
        "Table for two tonight, outside if the weather holds. Ben",
        r#"{"people":2,"date":"tonight","area":"inside","first_name":"Ben"}"#,
    ),
    (
        "Could you fit in 12 people next Friday at 19:30? It is for Ms. O'Neill; no nuts, no shellfish.",
        r#"{"people":12,"date":"Friday","time":"19:30","last_name":"O'Neill","allergies":["nuts","shellfish"]}"#,
    ),
    ("just me, at the bar, in twenty minutes", r#"{"people":"me","area":"bar","time":"in twenty minutes"}"#),
    ("Sorry, make that 5 instead of 4 at 7.", r#"{"people":4,"time":"7"}"#),
    ("明天晚上七点,四个人,姓王。", r#"{"people":4,"date":"明天","time":"晚上七点","last_name":"王"}"#),
    (
        "Can we bring our dog? 3 adults, Sunday lunch, 12:30, name of García.",
        r#"{"people":3,"date":"Sunday","time":"12:30","last_name":"Garcia","pets":true}"#,
    ),
    ("\u{1b}[2J\u{202e}table for 2\u{202c} at 8\u{1b}]0;x\u{7}", "Sure! {\"people\": 2, \"time\": \"8\"}"),
    (
        "One table for 20, please, on 2026-07-04 at six, Dr. Jane van der Berg, we are all vegetarians and two of us do not eat gluten or lactose.",
        r#"{"people":20,"date":"2026-07-04","time":"six","first_name":"Jane","last_name":"van der Berg","allergies":["gluten"],"table":"one"}"#,
    ),
];

const LETTERS: [(&str, &str); 4] = [
    (
        "How long is your kitchen open on Sundays?",
        "Thank you for your message. Our kitchen is open until nine on Sundays, and the bar until midnight.",
    ),
    (
        "I was charged twice for the same dinner!!",
        "Dear guest,\n\nwe are sorry for that. Please send us both receipts, then we pay one of them back within three days.\n\nKind regards,\nthe team",
    ),
    ("do you have high chairs", "Yes."),
    ("\u{1b}[31mIs this red?", "It is\u{200b} not: \u{1b}[31m shows as text.\nA second line."),
];

fn item(i: usize, message: &str, answer: &str) -> Item {
    Item {
        id: format!("trace-{i:04}"),
        message: message.into(),
        answer: answer.into(),
        answered_by: "frontier-1".into(),
        why: vec!["random".into()],
        about: vec![format!("customer c-{:03}", i * 7 % 100), "2026-03-04 10:11".into(), "train".into()],
        tags: vec!["train"],
        ..Item::default()
    }
}

fn labelled(i: usize) -> Item {
    let (text, answer, feedback) = MESSAGES[i % MESSAGES.len()];
    let text = match text {
        "WORD" => "x".repeat(3000),
        "LONG" => {
            (1..=400).map(|line| format!("{line}. The quick brown fox asks about a fee on his withdrawal.\n")).collect()
        }
        text => text.to_string(),
    };
    let instead = vec![("exchange_rate".into(), "21%".into())];
    Item { instead, feedback: Some(feedback.to_string()), ..item(i, &text, answer) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: review-demo DECISIONS [labels|fields|text] [ITEMS] | STORE queue RUN/curate";
    let log = PathBuf::from(args.next().ok_or(usage)?);
    let kind = args.next().unwrap_or_else(|| "labels".to_owned());
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let options = Options { colour, mouse: true, keys: KeyMap::default() };
    if kind == "queue" {
        let mut desk = QueueDesk::open(Setup {
            name: "demo".to_owned(),
            queue: review::queue(&PathBuf::from(args.next().ok_or(usage)?), 1)?,
            later: None,
            store: log,
            files: Vec::new(),
            reviewer: "demo".to_owned(),
            role: Role::First,
            max_label_error: 0.05,
            guidelines: "Values are the guest's own words.".to_owned(),
            now: Box::new(limbeck_artifact::journal::now),
        })?;
        let outcome = run(&mut desk, &options)?;
        return Ok(writeln!(std::io::stdout(), "{outcome:?}")?);
    }
    let n: usize = args.next().map_or(Ok(MESSAGES.len()), |n| n.parse())?;
    let labels = "activate_my_card,atm_support,balance_not_updated_after_bank_transfer,card_about_to_expire,card_arrival,\
        card_delivery_estimate,card_not_working,cash_withdrawal_charge,exchange_rate,lost_or_stolen_card,\
        pending_card_payment,refund_not_showing_up";
    let (form, items): (Form, Vec<Item>) = match kind.as_str() {
        "labels" => (Form::Labels, (0..n).map(labelled).collect()),
        "fields" => {
            let of = |i: usize| (i, BOOKINGS[i % BOOKINGS.len()]);
            let items = (0..n).map(of).map(|(i, (message, answer))| item(i, message, answer));
            (Form::Fields(Schema::parse(BOOKING)?), items.collect())
        }
        "text" => {
            let of = |i: usize| (i, LETTERS[i % LETTERS.len()]);
            (Form::Text, (0..n).map(of).map(|(i, (message, answer))| item(i, message, answer)).collect())
        }
        _ => return Err(usage.into()),
    };
    let labels = if form == Form::Labels { labels.split(',').map(str::to_string).collect() } else { Vec::new() };
    let mut desk = Demo { items: items.into(), labels: labels.into(), form, log, made: Vec::new() };
    let outcome = run(&mut desk, &options)?;
    writeln!(std::io::stdout(), "{outcome:?}")?;
    Ok(())
}
