//! What only the whole recipe can say of its arms: that gates name ones that there are, and that what is asked of an endpoint
//! fits the task.

use crate::error::RecipeError;
use crate::kinds;
use crate::read::{GivenTable, Reader, nearest};
use crate::resolve::table_names;
use crate::schema::{self, ARMS, GATES, JUDGES, Kind, Need, OWN_ARMS};
use toml::Value;

/// As `limbeck_distill::endpoint::Codes` has them: the letters.
const MOST_CODES: usize = 52;

pub(crate) fn check(reader: &Reader, get: &dyn Fn(&str) -> Option<Value>) -> Vec<RecipeError> {
    let arms: Vec<&GivenTable> = reader.of(&ARMS).collect();
    let names = table_names(&arms);
    let mut errors = Vec::new();
    for (arm, name) in arms.iter().zip(&names) {
        if OWN_ARMS.contains(&name.as_str()) {
            let place = arm.fields.get("name").map_or_else(|| arm.place.clone(), |given| given.place.clone());
            let message = format!("an arm can't be called \"{name}\", which is the name of one that is always there");
            errors.push(RecipeError::new(message, Some(place)).hint("give it another name, such as \"live\""));
        }
        for (key, message, hint) in problems(arm, get) {
            let place = arm.fields.get(key).map_or_else(|| arm.place.clone(), |given| given.place.clone());
            errors.push(RecipeError::new(message, Some(place)).hint(hint));
        }
    }
    let base = get("eval.base").and_then(|base| base.as_bool()) != Some(false);
    errors.extend(composed(&arms, &names, base, get));
    errors.extend(boundless(reader, &arms, get));
    errors.extend(reader.of(&GATES).chain(reader.of(&JUDGES)).flat_map(|table| unknown_arms(table, &names, base)));
    errors.extend(judges(reader, get));
    errors.extend(unpriced(reader, get));
    errors.extend(loads(reader, get, &arms, &names));
    errors
}

/// Arms that are made of ones that there are not, or not yet, and cascades that would never go on.
fn composed(
    arms: &[&GivenTable],
    names: &[String],
    base: bool,
    get: &dyn Fn(&str) -> Option<Value>,
) -> Vec<RecipeError> {
    let texts = |value: Option<Value>| -> Vec<String> {
        let list = value.and_then(|value| value.as_array().cloned()).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let in_words = kinds::written(get).is_some();
    let mut known: Vec<String> = ["frontier", "linear", "base", "tuned"].map(str::to_owned).to_vec();
    known.retain(|name| !(in_words && name == "linear") && (base || name != "base"));
    known.extend(texts(get("quantize.formats")));
    let mut errors = Vec::new();
    for (arm, name) in arms.iter().zip(names) {
        if let Some(given) = arm.fields.get("of") {
            let of = texts(Some(given.value.clone()));
            let mut wrong = |message: String, hint: String| {
                errors.push(RecipeError::new(message, Some(given.place.clone())).hint(hint));
            };
            for missing in of.iter().filter(|name| !known.contains(name)) {
                let message = format!("`of` names \"{missing}\", and no such arm comes before this one");
                wrong(
                    message,
                    match nearest(missing, known.iter().map(String::as_str)) {
                        Some(near) => format!("did you mean \"{near}\"?"),
                        None => format!("take of {}; an [[eval.arm]] has to stand above it", known.join(", ")),
                    },
                );
            }
            let last = of.last().map_or("", String::as_str);
            if arm.text("kind") == Some("cascade") && last != "frontier" && of.iter().any(|name| name == "frontier") {
                let message = "recorded answers don't say how sure they are, so a cascade ends with them".to_owned();
                wrong(message, "put \"frontier\" last".to_owned());
            }
            if arm.text("kind") == Some("cascade") {
                for unsure in of.iter().rev().skip(1).filter_map(|name| unsure(name, arms, names)) {
                    wrong(unsure.0, unsure.1.to_owned());
                }
            }
        }
        known.push(name.clone());
    }
    errors
}

/// Cascades whose first arm always has the last word: `eval.threshold` is 0 by itself where answers are texts.
fn boundless(reader: &Reader, arms: &[&GivenTable], get: &dyn Fn(&str) -> Option<Value>) -> Vec<RecipeError> {
    let given = reader.values.get("eval.threshold").map(|given| given.value.clone());
    let threshold = given.or_else(|| Some(schema::find("eval.threshold")?.default_under(get)?.0));
    if threshold.and_then(|value| value.as_float()) != Some(0.0) {
        return Vec::new();
    }
    let own = |arm: &&&GivenTable| arm.text("kind") == Some("cascade") && !arm.fields.contains_key("threshold");
    let error = |arm: &&GivenTable| {
        let message =
            "a cascade goes on where an arm is less sure than `threshold`, and eval.threshold is 0".to_owned();
        RecipeError::new(message, Some(arm.place.clone()))
            .hint("add `threshold = 0.5` to the arm: how sure an answer has to be to stand")
    };
    arms.iter().filter(own).map(error).collect()
}

/// Why an arm never says that it is sure, so that a cascade would always go on behind it, and the cure.
fn unsure(name: &str, arms: &[&GivenTable], names: &[String]) -> Option<(String, &'static str)> {
    let arm = arms.iter().zip(names).find(|(_, own)| *own == name)?.0;
    let value = |key: &str| arm.fields.get(key).map(|given| &given.value);
    match arm.text("kind")? {
        "cascade" => {
            let message = format!(
                "\"{name}\" is a cascade, which does not say how sure it is: what comes after it is always asked"
            );
            Some((message, "name the cascade's own arms here, one after another"))
        }
        "endpoint"
            if value("logprobs").and_then(Value::as_bool) == Some(false)
                && value("samples").and_then(Value::as_integer).unwrap_or(1) <= 1 =>
        {
            let message = format!(
                "\"{name}\" has no log-probabilities and one draw, so that it does not say how sure it is: what comes after it is always asked"
            );
            Some((message, "put it last, or give it `samples = 5` and `temperature = 0.7`"))
        }
        _ => None,
    }
}

/// Gates on a cost that nobody knows.
fn unpriced(reader: &Reader, get: &dyn Fn(&str) -> Option<Value>) -> Vec<RecipeError> {
    if get("eval.prices").is_some() {
        return Vec::new();
    }
    let of_cost = reader.of(&GATES).filter(|gate| gate.text("kind") == Some("cost"));
    let error = |gate: &GivenTable| {
        let place = gate.fields.get("kind").map_or_else(|| gate.place.clone(), |given| given.place.clone());
        RecipeError::new("a gate of kind cost needs prices, and the recipe names none".to_owned(), Some(place))
            .hint("add `prices = \"prices.toml\"` under [eval]")
    };
    of_cost.map(error).collect()
}

/// What is asked of load tests that can't be had.
fn loads(
    reader: &Reader,
    get: &dyn Fn(&str) -> Option<Value>,
    arms: &[&GivenTable],
    names: &[String],
) -> Vec<RecipeError> {
    let place = |key: &str| reader.values.get(key).map(|given| given.place.clone());
    let mut errors = Vec::new();
    let endpoints: Vec<&str> = arms
        .iter()
        .zip(names)
        .filter(|(arm, _)| arm.text("kind") == Some("endpoint"))
        .map(|(_, name)| name.as_str())
        .collect();
    let tested = get("eval.load.arms").and_then(|arms| arms.as_array().cloned()).unwrap_or_default();
    for name in tested.iter().filter_map(Value::as_str).filter(|name| !endpoints.contains(name)) {
        let message = format!("`eval.load.arms` names \"{name}\", which is no endpoint among [[eval.arm]]");
        errors.push(RecipeError::new(message, place("eval.load.arms")).hint(
            match nearest(name, endpoints.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "the served file is always tested; name endpoints only".to_owned(),
            },
        ));
    }
    if let Some(rate) = get("eval.load.rate").and_then(|rate| rate.as_float()) {
        for (arm, name) in arms.iter().zip(names).filter(|(_, name)| tested.iter().any(|t| t.as_str() == Some(name))) {
            let limit = arm.fields.get("requests_per_minute").and_then(|given| given.value.as_integer()).unwrap_or(0);
            if limit > 0 && rate * 60.0 > limit as f64 {
                let message =
                    format!("{rate} calls a second are more than the {limit} a minute that arm `{name}` allows");
                let hint =
                    "lower eval.load.rate, raise the arm's requests_per_minute, or leave it out of eval.load.arms";
                errors.push(RecipeError::new(message, place("eval.load.rate")).hint(hint));
            }
        }
        return errors;
    }
    for gate in reader.of(&GATES) {
        let under = gate.fields.get("under_load").filter(|given| given.value.as_bool() == Some(true));
        if let Some(given) = under {
            let message = "`under_load` needs a load test, and the recipe asks for none".to_owned();
            let hint = "set the calls a second that production sees: [eval.load] rate = 5.0";
            errors.push(RecipeError::new(message, Some(given.place.clone())).hint(hint));
        }
    }
    errors
}

/// Judges that have nothing to judge, and gates that go by a judge that there is not, or by nobody else.
fn judges(reader: &Reader, get: &dyn Fn(&str) -> Option<Value>) -> Vec<RecipeError> {
    let judges: Vec<&GivenTable> = reader.of(&JUDGES).collect();
    let names = table_names(&judges);
    let mut errors = Vec::new();
    for judge in &judges {
        if kinds::of(get).is_some_and(|kind| kind != "generate") {
            let message = "a judge compares texts, and `task.kind` is not \"generate\"".to_owned();
            let hint = "leave it out: labels and fields are right or wrong without one";
            errors.push(RecipeError::new(message, Some(judge.place.clone())).hint(hint));
        }
        for (key, message, hint) in problems(judge, get) {
            let place = judge.fields.get(key).map_or_else(|| judge.place.clone(), |given| given.place.clone());
            errors.push(RecipeError::new(message, Some(place)).hint(hint));
        }
    }
    // What is measured against what people wrote, or against the answers of another arm that are.
    let by_reference = |gate: &GivenTable| match gate.text("kind") {
        Some("floor") => gate.text("metric") != Some("validity"),
        Some("improvement" | "non_inferiority") => true,
        _ => false,
    };
    let referenced = reader.of(&GATES).any(by_reference);
    for gate in reader.of(&GATES).filter(|gate| gate.text("kind") == Some("judge")) {
        let named = gate.text("judge").unwrap_or("pairwise");
        let place = |key: &str| gate.fields.get(key).map_or_else(|| gate.place.clone(), |given| given.place.clone());
        if !names.iter().any(|name| name == named) {
            let message = format!("the gate goes by a judge \"{named}\", and there is none of that name");
            let error = RecipeError::new(message, Some(place("judge")));
            errors.push(match nearest(named, names.iter().map(String::as_str)) {
                Some(near) => error.hint(format!("did you mean \"{near}\"?")),
                None => error.hint("add it as [[eval.judge]], with kind = \"pairwise\", url and model"),
            });
        }
        if !referenced && kinds::of(get).is_some_and(|kind| kind == "generate") {
            let message = "a gate goes by a judge's word alone, which a fluent wrong answer may win".to_owned();
            let hint =
                "add a gate by what people wrote: kind = \"floor\", metric = \"rouge_l\" or \"exact_match\", and a min";
            errors.push(RecipeError::new(message, Some(place("kind"))).hint(hint));
        }
    }
    errors
}

/// Gates and judges that name an arm that there is not.
fn unknown_arms(gate: &GivenTable, names: &[String], base: bool) -> Vec<RecipeError> {
    let Some(kind) = gate.kind() else { return Vec::new() };
    let mut errors = Vec::new();
    for field in kind.fields {
        let Kind::Arm(own) = field.kind else { continue };
        let (named, place) = match (gate.fields.get(field.key), field.need) {
            (Some(given), _) => (given.value.as_str(), given.place.clone()),
            (None, Need::Default(text)) => (Some(text.trim_matches('"')), gate.place.clone()),
            (None, _) => continue,
        };
        let Some(named) = named else { continue };
        let others = names.iter().map(String::as_str).filter(|name| !OWN_ARMS.contains(name));
        let known: Vec<&str> = own.iter().copied().filter(|name| base || *name != "base").chain(others).collect();
        if known.contains(&named) {
            continue;
        }
        if named == "base" && own.contains(&"base") {
            let message =
                format!("`{}` is \"base\", and `eval.base` is false, so that the untuned base is not asked", field.key);
            errors.push(
                RecipeError::new(message, Some(place)).hint("set `eval.base` to true, or compare with another arm"),
            );
            continue;
        }
        let message = format!("`{}` is \"{named}\", expected one of \"{}\"", field.key, known.join("\", \""));
        let error = RecipeError::new(message, Some(place));
        errors.push(match nearest(named, known.into_iter()) {
            Some(near) => error.hint(format!("did you mean \"{near}\"?")),
            None => error.hint("name an arm, or add it as [[eval.arm]]"),
        });
    }
    errors
}

/// What is wrong with one arm: the key at fault, what is wrong, the cure.
fn problems(arm: &GivenTable, get: &dyn Fn(&str) -> Option<Value>) -> Vec<(&'static str, String, &'static str)> {
    let value = |key: &str| arm.fields.get(key).map(|given| &given.value);
    let mut found = Vec::new();
    if value("max_spend").is_some() && get("eval.prices").is_none() {
        let message = "`max_spend` needs prices, and the recipe names none".to_owned();
        found.push(("max_spend", message, "add `prices = \"prices.toml\"` under [eval], with the model in it"));
    }
    if value("label_codes").and_then(Value::as_bool) == Some(true) {
        let labels = get("task.labels").and_then(|labels| labels.as_array().map(Vec::len)).unwrap_or(0);
        if let Some(called) = kinds::written(get) {
            let message = format!("`label_codes` are for labels, and {called} has none");
            found.push(("label_codes", message, "leave it out"));
        } else if labels > MOST_CODES {
            let message = format!("`label_codes` are letters, {MOST_CODES} at most, and there are {labels} labels");
            found.push((
                "label_codes",
                message,
                "leave it out; with several samples there is a confidence all the same",
            ));
        }
    }
    let samples = value("samples").and_then(Value::as_integer).unwrap_or(1);
    if samples > 1 && value("temperature").and_then(Value::as_float).unwrap_or(0.0) == 0.0 {
        let message = format!("{samples} draws at temperature 0 are {samples} times the same");
        found.push(("samples", message, "set `temperature`, for example to 0.7"));
    }
    if let Some(name) = value("key_env").and_then(Value::as_str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit()) {
            let message = "`key_env` is no name of an environment variable".to_owned();
            found.push(("key_env", message, "write the variable's NAME, such as OPENAI_API_KEY; never the key itself"));
        }
    }
    found
}
