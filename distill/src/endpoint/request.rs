//! A question as the body of a request, and its digest: two questions with one digest are one question, whoever asks them
//! and in whatever order their fields are written.

use limbeck_artifact::dataset::Message;
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use serde_json::{Value, json};

/// Which of the two APIs the model is asked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/chat/completions`: turns, which the server puts into the model's template.
    Chat,
    /// `/completions`: one text that the model goes on with, for models that know no turns.
    Completions,
}

/// What the longest answer is called: newer models of OpenAI know the second name only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxTokensKey {
    MaxTokens,
    MaxCompletionTokens,
}

impl MaxTokensKey {
    fn name(self) -> &'static str {
        match self {
            MaxTokensKey::MaxTokens => "max_tokens",
            MaxTokensKey::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// How answers are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    pub temperature: f64,
    /// Of one answer.
    pub max_tokens: u32,
    pub max_tokens_key: MaxTokensKey,
    /// Asks for the probabilities of the answer's tokens, and at each of so many alternatives; none where the server refuses.
    pub logprobs: Option<u32>,
    /// llama.cpp's grammar (GBNF), which other servers don't know.
    pub grammar: Option<String>,
}

/// One thing to ask.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub messages: Vec<Message>,
    /// Draws of one question are told apart by their number.
    pub sample: u32,
}

/// What goes over the wire.
pub(crate) fn body(api: Api, model: &str, question: &Question, sampling: &Sampling) -> Value {
    let mut body = json!({"model": model});
    match api {
        Api::Chat => body["messages"] = json!(question.messages),
        Api::Completions => {
            body["prompt"] = json!(as_text(&question.messages));
            body["stop"] = json!(["\nMessage:"]);
        }
    }
    body[sampling.max_tokens_key.name()] = json!(sampling.max_tokens);
    body["temperature"] = json!(sampling.temperature);
    if let Some(top) = sampling.logprobs {
        match api {
            Api::Chat => {
                body["logprobs"] = json!(true);
                if top > 0 {
                    body["top_logprobs"] = json!(top);
                }
            }
            Api::Completions => body["logprobs"] = json!(top),
        }
    }
    if let Some(grammar) = &sampling.grammar {
        body["grammar"] = json!(grammar);
    }
    body
}

/// The question's name among kept replies.
pub(crate) fn key(url: &str, api: Api, body: &Value, sample: u32) -> String {
    let path = match api {
        Api::Chat => "chat/completions",
        Api::Completions => "completions",
    };
    let asked = json!({"url": url.trim_end_matches('/'), "path": path, "body": body, "sample": sample});
    sha256_hex(canonical_json(&asked).as_bytes())
}

/// Turns as a text that an answer continues.
fn as_text(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        match message.role.as_str() {
            "assistant" => text.push_str(&format!("Answer: {}\n\n", message.content.trim())),
            "system" | "developer" => text.push_str(&format!("{}\n\n", message.content.trim())),
            _ => text.push_str(&format!("Message: {}\n", message.content.trim())),
        }
    }
    text + "Answer:"
}

/// Tokens of a text as reckoned before it is sent: four bytes each, which is what English comes to.
pub fn text_tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(4)
}

/// A prompt's tokens: (as reckoned, more than it can be). No token is shorter than a byte; a template's own are some a turn.
pub(crate) fn prompt_tokens(messages: &[Message]) -> (u64, u64) {
    let texts = messages.iter().map(|message| message.content.as_str());
    let turns = messages.len() as u64;
    (
        texts.clone().map(text_tokens).sum::<u64>() + 4 * turns,
        texts.map(|t| t.len() as u64).sum::<u64>() + 16 * turns + 32,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling() -> Sampling {
        Sampling {
            temperature: 0.0,
            max_tokens: 8,
            max_tokens_key: MaxTokensKey::MaxTokens,
            logprobs: Some(5),
            grammar: None,
        }
    }

    fn question(sample: u32) -> Question {
        Question { messages: vec![Message::new("system", "S"), Message::new("user", "hi")], sample }
    }

    #[test]
    fn a_question_in_either_api() {
        let chat = body(Api::Chat, "m", &question(0), &sampling());
        assert_eq!(
            chat,
            json!({"model": "m", "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}],
                "max_tokens": 8, "temperature": 0.0, "logprobs": true, "top_logprobs": 5})
        );
        let text = body(Api::Completions, "m", &question(0), &sampling());
        assert_eq!(text["prompt"], "S\n\nMessage: hi\nAnswer:");
        assert_eq!(text["logprobs"], 5);
        let newer = Sampling { max_tokens_key: MaxTokensKey::MaxCompletionTokens, logprobs: None, ..sampling() };
        let newer = body(Api::Chat, "m", &question(0), &newer);
        assert!(
            newer.get("max_tokens").is_none() && newer["max_completion_tokens"] == 8 && newer.get("logprobs").is_none()
        );
    }

    #[test]
    fn the_digest_is_of_what_is_asked_and_not_of_how_it_is_written() {
        let of = |url: &str, model: &str, sample| {
            key(url, Api::Chat, &body(Api::Chat, model, &question(0), &sampling()), sample)
        };
        let turned: Value = serde_json::from_str(
            r#"{"temperature": 0.0, "top_logprobs": 5, "logprobs": true, "max_tokens": 8,
                "messages": [{"content": "S", "role": "system"}, {"content": "hi", "role": "user"}], "model": "m"}"#,
        )
        .unwrap();
        assert_eq!(of("http://a/v1", "m", 0), key("http://a/v1/", Api::Chat, &turned, 0));
        let others = [of("http://b/v1", "m", 0), of("http://a/v1", "n", 0), of("http://a/v1", "m", 1)];
        assert!(others.iter().all(|other| *other != of("http://a/v1", "m", 0)));
    }
}
