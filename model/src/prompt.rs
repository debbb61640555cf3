//! How a conversation and its wanted answer become tokens, and which of them carry loss. Prompt and answer are
//! tokenized apart and joined, at training and at serving alike, so the same ids are seen by both.

use crate::tokenizer::ChatTokenizer;
use limbeck_artifact::dataset::Message;

#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("the prompt could not be rendered: {0}")]
    Render(String),
    #[error("the text could not be tokenized: {0}")]
    Tokenize(String),
    #[error(
        "the chat template does not extend the prompt when the answer is added; the row's mask would be wrong. \
         Template output: {0:?}"
    )]
    NotAPrefix(String),
    #[error("the tokenizer names no end-of-turn token; an answer could never end. Check tokenizer_config.json")]
    NoEndOfTurn,
    #[error("the answer is empty: no token would carry loss")]
    EmptyAnswer,
    #[error(
        "the answer {0:?} contains the special token {1:?}; such an answer can't be told from the template's own text"
    )]
    SpecialInAnswer(String, String),
    #[error(
        "the row has {len} tokens, max_seq_length is {max}: the answer would be cut off. Raise max_seq_length or filter long rows"
    )]
    TooLong { len: usize, max: usize },
}

/// A row as the trainer sees it: `prompt` carries no loss, every token of `completion` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedExample {
    pub prompt: Vec<u32>,
    /// The answer and the end-of-turn token.
    pub completion: Vec<u32>,
}

impl EncodedExample {
    pub fn len(&self) -> usize {
        self.prompt.len() + self.completion.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids and, for each, whether it carries loss (is predicted by the position before it).
    pub fn ids_and_mask(&self) -> (Vec<u32>, Vec<bool>) {
        let ids = self.prompt.iter().chain(&self.completion).copied().collect();
        let mask = (0..self.len()).map(|i| i >= self.prompt.len()).collect();
        (ids, mask)
    }
}

/// The conversation up to the point where the model answers.
pub fn encode_prompt(tokenizer: &ChatTokenizer, messages: &[Message]) -> Result<Vec<u32>, PromptError> {
    let text = tokenizer.render(messages, true).map_err(|e| PromptError::Render(e.to_string()))?;
    tokenizer.encode(&text).map_err(|e| PromptError::Tokenize(e.to_string()))
}

/// The answer's tokens and the token that ends the turn.
pub fn encode_completion(tokenizer: &ChatTokenizer, answer: &str) -> Result<Vec<u32>, PromptError> {
    if answer.is_empty() {
        return Err(PromptError::EmptyAnswer);
    }
    let mut tokens = tokenizer.encode(answer).map_err(|e| PromptError::Tokenize(e.to_string()))?;
    if let Some(&special) = tokens.iter().find(|&&t| tokenizer.is_special(t)) {
        let name = tokenizer.token(special).unwrap_or_default().to_string();
        return Err(PromptError::SpecialInAnswer(answer.to_string(), name));
    }
    tokens.push(tokenizer.end_of_turn_id().ok_or(PromptError::NoEndOfTurn)?);
    Ok(tokens)
}

/// A training row. The template's own rendering of the answer must begin with the prompt and go on with the answer.
pub fn encode_example(
    tokenizer: &ChatTokenizer,
    messages: &[Message],
    answer: &str,
    max_seq_length: usize,
) -> Result<EncodedExample, PromptError> {
    let render = |m: &[Message], open| tokenizer.render(m, open).map_err(|e| PromptError::Render(e.to_string()));
    let opened = render(messages, true)?;
    let mut answered = messages.to_vec();
    answered.push(Message { role: "assistant".into(), content: answer.into() });
    let full = render(&answered, false)?;
    match full.strip_prefix(&opened) {
        Some(rest) if rest.starts_with(answer) => {}
        _ => return Err(PromptError::NotAPrefix(full)),
    }
    let prompt = tokenizer.encode(&opened).map_err(|e| PromptError::Tokenize(e.to_string()))?;
    let example = EncodedExample { prompt, completion: encode_completion(tokenizer, answer)? };
    match example.len() > max_seq_length {
        true => Err(PromptError::TooLong { len: example.len(), max: max_seq_length }),
        false => Ok(example),
    }
}

/// Length of the longest prefix that all prompts share, leaving at least one token of each to itself.
pub fn shared_prefix<'a>(prompts: impl IntoIterator<Item = &'a [u32]>) -> usize {
    let mut prompts = prompts.into_iter();
    let Some(first) = prompts.next() else { return 0 };
    let mut shared = first.len().saturating_sub(1);
    for prompt in prompts {
        let common = first.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        shared = shared.min(common).min(prompt.len().saturating_sub(1));
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_prefix_leaves_each_row_a_token() {
        assert_eq!(shared_prefix([&[1, 2, 3][..], &[1, 2, 4]]), 2);
        assert_eq!(shared_prefix([&[1, 2][..], &[1, 2]]), 1);
        assert_eq!(shared_prefix([&[1][..], &[2]]), 0);
        assert_eq!(shared_prefix(std::iter::empty::<&[u32]>()), 0);
        assert_eq!(shared_prefix([&[][..], &[1]]), 0);
    }
}
