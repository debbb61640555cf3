//! The review screen over a few hostile messages, to be tried by hand: `cargo run --release -p limbeck-tui --example
//! review-demo -- decisions.txt [items]`. Judgements are appended to the named file, one line each.

use limbeck_artifact::files::append_line;
use limbeck_tui::review::{Desk, DeskError, Item, Judgement, KeyMap, Options, Seen, State, run};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

struct Demo {
    items: Arc<[Item]>,
    labels: Arc<[String]>,
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

    fn labels(&self) -> Arc<[String]> {
        self.labels.clone()
    }

    fn state(&self, item: usize) -> State {
        let judged = |(of, j): &&(usize, Judgement)| *of == item && j.verdict.judges();
        let judgement = self.made.iter().rfind(judged).map(|(_, judgement)| judgement.clone());
        State { closed: judgement.is_some(), judgement, ..State::default() }
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let log = PathBuf::from(args.next().ok_or("usage: review-demo DECISIONS [ITEMS]")?);
    let n: usize = args.next().map_or(Ok(MESSAGES.len()), |n| n.parse())?;
    let items = (0..n).map(|i| {
        let (text, answer, feedback) = MESSAGES[i % MESSAGES.len()];
        let text = match text {
            "WORD" => "x".repeat(3000),
            "LONG" => (1..=400)
                .map(|line| format!("{line}. The quick brown fox asks about a fee on his withdrawal.\n"))
                .collect(),
            text => text.to_string(),
        };
        Item {
            id: format!("trace-{i:04}"),
            message: text,
            answer: answer.into(),
            answered_by: "frontier-1".into(),
            why: vec!["random sample".into()],
            instead: vec![("exchange_rate".into(), "21%".into())],
            feedback: Some(feedback.to_string()),
            about: vec![format!("customer c-{:03}", i * 7 % 100), "2026-03-04 10:11".into(), "train".into()],
            tags: vec!["train"],
        }
    });
    let labels = "activate_my_card,atm_support,balance_not_updated_after_bank_transfer,card_about_to_expire,card_arrival,\
        card_delivery_estimate,card_not_working,cash_withdrawal_charge,exchange_rate,lost_or_stolen_card,\
        pending_card_payment,refund_not_showing_up";
    let mut desk =
        Demo { items: items.collect(), labels: labels.split(',').map(str::to_string).collect(), log, made: Vec::new() };
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let outcome = run(&mut desk, &Options { colour, mouse: true, keys: KeyMap::default() })?;
    writeln!(std::io::stdout(), "{outcome:?}")?;
    Ok(())
}
