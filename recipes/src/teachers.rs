//! What a recipe says of a teacher must be about one, of a kind of answer that it can tell of, and about the divergence that it
//! names.

use crate::kinds;
use toml::Value;

type Get<'a> = &'a dyn Fn(&str) -> Option<Value>;

/// Divergences with an alpha, with a beta.
const WITH: [(&str, &[&str]); 2] =
    [("distill.divergence_alpha", &["skew_kl", "alpha_beta"]), ("distill.divergence_beta", &["js", "alpha_beta"])];

/// The key at fault, what is wrong, the cure.
pub(crate) fn misplaced(get: Get<'_>) -> Vec<(&'static str, String, &'static str)> {
    let given = |key: &str| get(key).is_some();
    let says = |key: &str, value: &str| get(key).is_some_and(|v| v.as_str() == Some(value));
    let (teacher, capture) = (given("distill.teacher"), given("distill.capture"));
    let mut found = Vec::new();
    if teacher && capture {
        let message = "`distill.capture` holds a teacher's answers, and `distill.teacher` names one to ask".to_owned();
        found.push(("distill.capture", message, "keep one of the two"));
    }
    if given("distill.teacher_adapter") && !teacher {
        let message = "`distill.teacher_adapter` is an adapter on `distill.teacher`, which is missing".to_owned();
        found.push((
            "distill.teacher_adapter",
            message,
            "add `teacher = …` under [distill], the base it was trained on",
        ));
    }
    let some = |key: &str| get(key).and_then(|v| v.as_array().map(|list| !list.is_empty())).unwrap_or(false);
    if some("distill.committee") && !teacher {
        let message = "`distill.committee` are further teachers beside `distill.teacher`, which is missing".to_owned();
        let help = "name one of them as `teacher = …`; `limbeck capture merge` makes one capture of several";
        found.push(("distill.committee", message, help));
    }
    let unlabeled = get("distill.unlabeled").and_then(|v| v.as_array().map(|list| !list.is_empty())).unwrap_or(false);
    if unlabeled && !teacher && !capture {
        let message = "`distill.unlabeled` is learnt from a teacher alone, and none is named".to_owned();
        found.push(("distill.unlabeled", message, "add `teacher = …` or `capture = …` under [distill]"));
    }
    let number = |key: &str| get(key).and_then(|v| v.as_float()).unwrap_or(0.0);
    for key in ["distill.hidden_weight", "distill.attention_weight"] {
        if number(key) > 0.0 && !teacher {
            let message = match capture {
                true => format!("`{key}` needs the teacher in every step, and a capture holds no hidden states"),
                false => format!("`{key}` is of a teacher's hidden states, and `distill.teacher` is missing"),
            };
            found.push((key, message, "name the teacher: `teacher = …` under [distill]"));
        }
    }
    let explains = get("distill.rationales").and_then(|v| v.as_array().map(|list| !list.is_empty())).unwrap_or(false);
    let turbo = get("train.turbo_layers").and_then(|v| v.as_integer()).unwrap_or(0);
    if explains && turbo > 0 && number("distill.rationale_weight") > 0.0 {
        let message = "`distill.rationales` reads rows a second time, and `train.turbo_layers` keeps states of their first reading";
        found.push((
            "distill.rationales",
            message.to_owned(),
            "set `train.turbo_layers` to 0, or take one of the two out",
        ));
    }
    if let Some(called) = kinds::written(get).filter(|_| teacher || capture) {
        found.extend(over_tokens(get, called, unlabeled && capture));
    }
    found.extend(on_policy(get, teacher));
    for (key, of) in WITH {
        let divergence = get("distill.divergence").and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        if given(key) && !of.contains(&divergence.as_str()) {
            let message = format!("`{key}` is of {}, and `distill.divergence` is \"{divergence}\"", of.join(" and "));
            found.push((key, message, "take it out, or change `distill.divergence`"));
        }
    }
    if says("distill.divergence", "js") && get("distill.divergence_beta").and_then(|v| v.as_float()) == Some(1.0) {
        let message = "`distill.divergence_beta` is 1, where js is 0 whatever the student says".to_owned();
        found.push(("distill.divergence_beta", message, "take a number below 1, such as 0.5"));
    }
    found
}

/// What stands against answers that the student writes itself.
fn on_policy(get: Get<'_>, teacher: bool) -> Vec<(&'static str, String, &'static str)> {
    const KEY: &str = "distill.on_policy";
    let mut found = Vec::new();
    if get(KEY).and_then(|v| v.as_float()).is_none_or(|share| share == 0.0) {
        return found;
    }
    if kinds::written(get).is_none() {
        let message =
            format!("`{KEY}` is of answers that are written; over labels a posterior tells of all answers at once");
        found.push((KEY, message, "take it out: the student is compared with the teacher on every label as it is"));
        return found;
    }
    if !teacher {
        let message =
            format!("`{KEY}` has the student's own answers read by a teacher while it trains, and none is named");
        found.push((KEY, message, "add `teacher = …` under [distill]; a capture can't be asked anew"));
    }
    if get("train.train_on").is_some_and(|v| v.as_str() == Some("all_assistant")) {
        let message = format!("`{KEY}` replaces the last answer alone, and `train.train_on` is \"all_assistant\"");
        found.push((KEY, message, "set train.train_on to \"last\", or take it out"));
    }
    if get("train.turbo_layers").and_then(|v| v.as_integer()).is_some_and(|layers| layers > 0) {
        let message =
            format!("`{KEY}` has new answers at each step, and `train.turbo_layers` keeps the states of known ones");
        found.push((KEY, message, "set train.turbo_layers to 0, or take it out"));
    }
    found
}

/// What can't be asked of a teacher that tells what it expects at each token.
fn over_tokens(get: Get<'_>, called: &str, unwritten: bool) -> Vec<(&'static str, String, &'static str)> {
    let mut found = Vec::new();
    if unwritten {
        let message =
            format!("`distill.unlabeled` of {called} wants answers written, and `distill.capture` can write none");
        found.push(("distill.unlabeled", message, "name the teacher itself: `teacher = …` in the place of `capture`"));
    }
    let temperature = get("distill.temperature").and_then(|v| v.as_float());
    if let Some(t) = temperature.filter(|t| *t != 1.0) {
        let message = format!("`distill.temperature` is {t}, and of a part of a distribution only 1 can be had");
        found.push(("distill.temperature", message, "take it out, or set it to 1.0"));
    }
    if get("distill.draws").is_some() {
        if get("distill.top_k").is_some() {
            let message = "`distill.draws` and `distill.top_k` are two ways to keep a distribution".to_owned();
            found.push(("distill.draws", message, "keep one of the two"));
        }
        let divergence = get("distill.divergence").and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        if divergence != "forward_kl" {
            let message = format!(
                "`distill.draws` is unbiased for forward_kl alone, and `distill.divergence` is \"{divergence}\""
            );
            found.push(("distill.draws", message, "take it out: the likeliest tokens serve every divergence"));
        }
    }
    found
}
