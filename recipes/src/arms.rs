//! What only the whole recipe can say of its arms: that gates name ones that there are, and that what is asked of an endpoint
//! fits the task.

use crate::error::RecipeError;
use crate::kinds;
use crate::read::{GivenTable, Reader, nearest};
use crate::resolve::table_names;
use crate::schema::{ARMS, GATES, Kind, OWN_ARMS};
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
    errors.extend(reader.of(&GATES).flat_map(|gate| unknown_arms(gate, &names)));
    errors
}

/// Gates that name an arm that there is not.
fn unknown_arms(gate: &GivenTable, names: &[String]) -> Vec<RecipeError> {
    let Some(kind) = gate.kind() else { return Vec::new() };
    let mut errors = Vec::new();
    for field in kind.fields {
        let (Kind::Arm(own), Some(given)) = (field.kind, gate.fields.get(field.key)) else { continue };
        let Some(named) = given.value.as_str() else { continue };
        let others = names.iter().map(String::as_str).filter(|name| !OWN_ARMS.contains(name));
        let known: Vec<&str> = own.iter().copied().chain(others).collect();
        if known.contains(&named) {
            continue;
        }
        let message = format!("`{}` is \"{named}\", expected one of \"{}\"", field.key, known.join("\", \""));
        let error = RecipeError::new(message, Some(given.place.clone()));
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
