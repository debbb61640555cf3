//! A stream of questions, a line each: answered as they come, and those that wait already are answered at once. Answers keep
//! the order of the lines.

use super::{Answer, MAX_BYTES, Scorer, user};
use crate::exit::{Exit, Result};
use crate::output;
use limbeck_artifact::dataset::Message;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

#[derive(Deserialize)]
struct Question {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    messages: Option<Vec<Message>>,
}

/// A line of the stream: what is asked, or why it can't be answered.
struct Line {
    number: u64,
    id: Option<Value>,
    messages: std::result::Result<Vec<Message>, String>,
}

/// Answers each line. A line that can't be answered is answered with why, and the stream goes on.
pub fn answer(scorer: Scorer, most: usize) -> Result<Exit> {
    let batch = most.max(1);
    // Read ahead, so that what is there already can be told from what is still to come.
    let (sender, lines) = sync_channel(batch);
    std::thread::spawn(move || read(&mut io::stdin().lock(), &sender));
    let (mut number, mut bad) = (0, 0u64);
    while let Some(lines) = next(&lines, batch)? {
        let asked: Vec<&[Message]> = lines.iter().filter_map(|line| line.messages.as_deref().ok()).collect();
        let mut answers = scorer.answer_all(&asked).into_iter();
        for line in lines {
            number = line.number;
            let answer = match line.messages {
                Err(why) => Err(why),
                Ok(_) => answers.next().map_or(Err("no answer".to_owned()), |answer| answer.map_err(|e| e.message)),
            };
            let value = match answer {
                Ok(answer) => serde_json::to_value(&Answer { id: line.id, ..answer })?,
                Err(why) => {
                    bad += 1;
                    json!({"id": line.id, "line": line.number, "error": why})
                }
            };
            output::stdout(&format!("{value}\n"))?;
        }
    }
    if bad > 0 {
        output::stderr(&format!("{bad} of {number} lines could not be answered; each has an `error`\n"));
    }
    Ok(Exit::Ok)
}

/// The next line and what else is there, at most so many; none at the stream's end.
fn next(lines: &Receiver<io::Result<Line>>, most: usize) -> Result<Option<Vec<Line>>> {
    let Ok(first) = lines.recv() else { return Ok(None) };
    let mut taken = vec![first?];
    while taken.len() < most
        && let Ok(line) = lines.try_recv()
    {
        taken.push(line?);
    }
    Ok(Some(taken))
}

/// Until the stream ends, fails, or nobody listens any more.
fn read(input: &mut impl BufRead, lines: &SyncSender<io::Result<Line>>) {
    let mut number = 0;
    loop {
        let line = read_line(input, &mut number);
        let over = !matches!(line, Ok(Some(_)));
        if let Some(line) = line.transpose()
            && lines.send(line).is_err()
        {
            return;
        }
        if over {
            return;
        }
    }
}

/// The next line that is not blank.
fn read_line(input: &mut impl BufRead, number: &mut u64) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.by_ref().take(MAX_BYTES + 1).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        *number += 1;
        if line.len() as u64 > MAX_BYTES {
            if line.last() != Some(&b'\n') {
                skip_line(input)?;
            }
            let messages = Err(format!("the line is longer than {MAX_BYTES} bytes"));
            return Ok(Some(Line { number: *number, id: None, messages }));
        }
        if !line.trim_ascii().is_empty() {
            let (id, messages) = question(&line);
            return Ok(Some(Line { number: *number, id, messages }));
        }
    }
}

fn question(line: &[u8]) -> (Option<Value>, std::result::Result<Vec<Message>, String>) {
    let question: Question = match serde_json::from_slice(line) {
        Ok(question) => question,
        Err(e) => return (None, Err(format!("not a question: {e}"))),
    };
    let messages = match (question.text, question.messages) {
        (Some(text), None) if !text.trim().is_empty() => Ok(vec![user(&text)]),
        (None, Some(messages)) if !messages.is_empty() => Ok(messages),
        _ => Err("a line needs either `text` or `messages`".to_owned()),
    };
    (question.id, messages)
}

fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let (used, ended) = {
            let piece = input.fill_buf()?;
            match piece.iter().position(|b| *b == b'\n') {
                Some(at) => (at + 1, true),
                None => (piece.len(), piece.is_empty()),
            }
        };
        input.consume(used);
        if ended {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read: the number of each line, and the message or what is wrong.
    fn lines(input: &[u8]) -> Vec<(u64, String)> {
        let (sender, lines) = sync_channel(100);
        read(&mut io::BufReader::with_capacity(64, input), &sender);
        drop(sender);
        let told = |line: Line| (line.number, line.messages.map_or_else(|why| why, |m| m[0].content.clone()));
        lines.into_iter().map(|line| told(line.unwrap())).collect()
    }

    #[test]
    fn blank_lines_count_and_bad_ones_say_what_is_wrong() {
        let mut input = b"{\"text\":\"one\"}\n\n  \n{\"id\":2}\n".to_vec();
        input.extend(std::iter::repeat_n(b'x', MAX_BYTES as usize));
        input.extend(b"\nnone\n{\"messages\":[{\"role\":\"user\",\"content\":\"last\"}]}");
        let read = lines(&input);
        let (numbers, texts): (Vec<u64>, Vec<&str>) = read.iter().map(|(n, text)| (*n, text.as_str())).unzip();
        assert_eq!(numbers, [1, 4, 5, 6, 7]);
        assert_eq!((texts[0], texts[1], texts[4]), ("one", "a line needs either `text` or `messages`", "last"));
        assert!(texts[2].contains("longer than") && texts[3].contains("not a question"), "{texts:?}");
    }
}
