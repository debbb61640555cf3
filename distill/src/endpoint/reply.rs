//! What a response says. Nothing of it is trusted: a log-probability that can't be one is left out and named.

use super::wire::{Fault, said};
use limbeck_artifact::untrusted::visible_line;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A token of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenProb {
    pub token: String,
    /// Natural.
    pub logprob: f64,
    /// The likeliest tokens at its place, itself most likely among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<(String, f64)>,
}

/// What the model answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// As the server names what answered; a name of one's own may stand for several versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    /// The answer's tokens where the server tells them and they can be believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<TokenProb>,
    /// Why the log-probabilities that came are not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs_fault: Option<String>,
    /// Of the attempt that was answered, in milliseconds; 0 of one that a batch answered.
    pub latency_ms: f64,
    /// RFC 3339.
    pub at: String,
    pub retries: u32,
    /// It came in a batch's results: at a batch's price, and nobody knows how fast.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub batch: bool,
}

impl Reply {
    /// The probability of the answer as a whole, where its tokens' are known.
    pub fn probability(&self) -> Option<f64> {
        (!self.tokens.is_empty()).then(|| self.tokens.iter().map(|t| t.logprob).sum::<f64>().exp().clamp(0.0, 1.0))
    }
}

/// # Errors
/// When it holds no answer.
pub(super) fn reply(value: &Value) -> Result<Reply, Fault> {
    // Some gateways send an error with status 200.
    if value.get("choices").is_none() && value.get("error").is_some_and(|e| !e.is_null()) {
        return Err(Fault::Refused { status: 200, message: said(&value.to_string()) });
    }
    let choice = value.pointer("/choices/0").filter(|c| c.is_object()).ok_or(Fault::NoChoice)?;
    let content = choice.pointer("/message/content").or_else(|| choice.get("text"));
    let text = match content {
        Some(Value::String(text)) => text.clone(),
        // A refusal, or a turn that only calls tools: an answer, and not one that counts.
        Some(Value::Null) => String::new(),
        None if choice.get("message").is_some_and(Value::is_object) => String::new(),
        _ => return Err(Fault::NoChoice),
    };
    let string = |at: &str| value.get(at).and_then(Value::as_str).map(|s| visible_line(s).into_owned());
    let count = |at: &str| value.pointer(at).and_then(Value::as_u64);
    let (tokens, logprobs_fault) = match choice.get("logprobs").filter(|l| !l.is_null()) {
        None => (Vec::new(), None),
        Some(found) => match logprobs(found) {
            Ok(tokens) => (tokens, None),
            Err(why) => (Vec::new(), Some(why)),
        },
    };
    Ok(Reply {
        text,
        finish_reason: choice.get("finish_reason").and_then(Value::as_str).map(|s| visible_line(s).into_owned()),
        model: string("model"),
        fingerprint: string("system_fingerprint"),
        prompt_tokens: count("/usage/prompt_tokens"),
        completion_tokens: count("/usage/completion_tokens"),
        tokens,
        logprobs_fault,
        ..Reply::default()
    })
}

/// Both forms: chat's list of objects, and the older API's parallel lists.
fn logprobs(value: &Value) -> Result<Vec<TokenProb>, String> {
    let mut tokens = Vec::new();
    if let Some(list) = value.get("content").and_then(Value::as_array) {
        for item in list {
            let pair = |v: &Value| Some((v.get("token")?.as_str()?.to_owned(), v.get("logprob")?.as_f64()?));
            let (token, logprob) = pair(item).ok_or("a token without a log-probability")?;
            let top = item.get("top_logprobs").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let top = top.iter().map(|v| pair(v).ok_or("an alternative without a log-probability"));
            tokens.push(TokenProb { token, logprob, top: top.collect::<Result<_, _>>()? });
        }
    } else if let Some(texts) = value.get("tokens").and_then(Value::as_array) {
        let found = value.get("token_logprobs").and_then(Value::as_array).ok_or("tokens without log-probabilities")?;
        if found.len() != texts.len() {
            return Err(format!("{} log-probabilities of {} tokens", found.len(), texts.len()));
        }
        for (i, (token, logprob)) in texts.iter().zip(found).enumerate() {
            let (token, logprob) = token.as_str().zip(logprob.as_f64()).ok_or("a token without a log-probability")?;
            let top = value.pointer(&format!("/top_logprobs/{i}")).and_then(Value::as_object);
            let top = top.into_iter().flatten().filter_map(|(t, lp)| Some((t.clone(), lp.as_f64()?))).collect();
            tokens.push(TokenProb { token: token.to_owned(), logprob, top });
        }
    }
    for token in &mut tokens {
        check(token)?;
        token.logprob = token.logprob.min(0.0);
    }
    Ok(tokens)
}

/// Rounding may carry a probability a little over one; what goes further is none.
fn check(token: &TokenProb) -> Result<(), String> {
    const SLACK: f64 = 1e-3;
    let all = || token.top.iter().map(|(_, lp)| *lp).chain([token.logprob]);
    if let Some(bad) = all().find(|lp| !lp.is_finite() || *lp > SLACK) {
        return Err(format!("a log-probability of {bad}"));
    }
    let mass: f64 = token.top.iter().map(|(_, lp)| lp.exp()).sum();
    if mass > 1.0 + 10.0 * SLACK { Err(format!("alternatives with {mass:.3} of the probability")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::ops::Neg as _;

    #[test]
    fn replies_of_both_apis_are_read() {
        let chat = json!({"model": "m-1", "system_fingerprint": "fp", "usage": {"prompt_tokens": 9, "completion_tokens": 2},
            "choices": [{"message": {"content": "card"}, "finish_reason": "stop", "logprobs": {"content": [
                {"token": "ca", "logprob": -0.5, "top_logprobs": [{"token": "ca", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]},
                {"token": "rd", "logprob": 0.0000001, "top_logprobs": []}]}}]});
        let read = reply(&chat).unwrap();
        assert_eq!((read.text.as_str(), read.prompt_tokens, read.completion_tokens), ("card", Some(9), Some(2)));
        assert_eq!((read.model.as_deref(), read.fingerprint.as_deref()), (Some("m-1"), Some("fp")));
        assert!((read.probability().unwrap() - 0.5_f64.neg().exp()).abs() < 1e-6);
        let older = json!({"choices": [{"text": " card", "logprobs":
            {"tokens": [" card"], "token_logprobs": [-0.25], "top_logprobs": [{" card": -0.25, " b": -2.0}]}}]});
        let read = reply(&older).unwrap();
        assert_eq!(read.tokens[0].top.len(), 2);
        assert_eq!(reply(&json!({"choices": [{"message": {"content": null, "refusal": "no"}}]})).unwrap().text, "");
    }

    #[test]
    fn log_probabilities_that_are_none_are_left_out_and_named() {
        let with = |logprobs: Value| {
            reply(&json!({"choices": [{"message": {"content": "a"}, "logprobs": logprobs}]})).unwrap()
        };
        let token = |logprob: Value| json!({"content": [{"token": "a", "logprob": logprob}]});
        for bad in [
            token(json!(0.5)),
            token(json!(null)),
            token(json!("-1")),
            json!({"content": [{"logprob": -1}]}),
            json!({"content": [{"token": "a", "logprob": -1, "top_logprobs":
                [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -0.1}]}]}),
            json!({"tokens": ["a", "b"], "token_logprobs": [-1.0]}),
        ] {
            let read = with(bad.clone());
            assert!(read.tokens.is_empty() && read.logprobs_fault.is_some() && read.text == "a", "{bad}");
        }
        assert_eq!(with(json!(null)).logprobs_fault, None);
    }

    #[test]
    fn what_is_no_completion_is_a_fault() {
        for bad in
            [json!(null), json!([]), json!({"choices": []}), json!({"choices": [7]}), json!({"choices": [{"text": 3}]})]
        {
            assert_eq!(reply(&bad), Err(Fault::NoChoice), "{bad}");
        }
        let told = json!({"error": {"message": "overloaded\u{1b}[31m"}});
        let Err(Fault::Refused { message, .. }) = reply(&told) else { panic!() };
        assert!(message.contains("overloaded") && !message.contains('\u{1b}'), "{message}");
    }
}
