//! From `--param` to trials: the grid of lists, or draws from lists and ranges. The same words give the same trials, and
//! a trial's name says its values, so that a widened sweep finds what is done.

use limbeck_artifact::digest::sha256_hex;
use limbeck_trainer::random::Random;

/// More would not be a sweep but a mistake.
const MOST: usize = 1000;

#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    pub key: String,
    pub values: Values,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    List(Vec<String>),
    /// Drawn evenly on a log scale; whole numbers where both ends are.
    Range {
        low: f64,
        high: f64,
        whole: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Of its run folder.
    pub name: String,
    /// Key and value, in the order of the parameters.
    pub sets: Vec<(String, String)>,
}

/// Reads `train.learning_rate=1e-4,3e-4` or `train.learning_rate=1e-4..1e-2`.
pub fn param(text: &str) -> Result<Param, String> {
    let example = "write train.learning_rate=1e-4,3e-4 or train.learning_rate=1e-4..1e-2";
    let (key, values) = text.split_once('=').ok_or(example)?;
    let key = key.trim();
    if !key.starts_with("train.") {
        return Err(format!("`{key}` is no key of [train]; all trials share the data, so only train.* can vary"));
    }
    if let Some((low, high)) = values.split_once("..") {
        let number = |s: &str| s.trim().parse::<f64>().map_err(|_| format!("`{s}` is no number; {example}"));
        let whole = [low, high].iter().all(|s| s.trim().parse::<u64>().is_ok());
        let (low, high) = (number(low)?, number(high)?);
        if !(low > 0.0 && high > low && high.is_finite()) {
            return Err("a range goes from a number above 0 to a greater one".to_owned());
        }
        return Ok(Param { key: key.to_owned(), values: Values::Range { low, high, whole } });
    }
    let list: Vec<String> = values.split(',').map(|v| canonical(v.trim())).collect();
    if list.iter().any(String::is_empty) {
        return Err(format!("a value is empty; {example}"));
    }
    Ok(Param { key: key.to_owned(), values: Values::List(list) })
}

/// One spelling a number: `0.0010` and `1e-3` are the same trial.
fn canonical(value: &str) -> String {
    match value.parse::<f64>() {
        Ok(x) if x.is_finite() && value.parse::<i64>().is_err() => format!("{x:e}"),
        _ => value.to_owned(),
    }
}

/// The trials of a sweep: the whole grid, or `samples` distinct draws with `seed`.
///
/// # Errors
/// A range without `samples`, a key that is given twice, or too many trials, in words for a person.
pub fn trials(params: &[Param], samples: Option<usize>, seed: u64) -> Result<Vec<Trial>, String> {
    if let Some(twice) = params.iter().enumerate().find(|(i, p)| params[..*i].iter().any(|q| q.key == p.key)) {
        return Err(format!("`{}` is given twice; put its values into one --param", twice.1.key));
    }
    let rows = match samples {
        Some(n) => draws(params, n, seed),
        None => grid(params)?,
    };
    let mut trials: Vec<Trial> = Vec::new();
    for sets in rows {
        if trials.iter().all(|t| t.sets != sets) {
            trials.push(Trial { name: name(&sets), sets });
        }
    }
    Ok(trials)
}

type Sets = Vec<(String, String)>;

fn grid(params: &[Param]) -> Result<Vec<Sets>, String> {
    let mut rows: Vec<Sets> = vec![Vec::new()];
    for Param { key, values } in params {
        let Values::List(list) = values else {
            return Err(format!("`{key}` is a range: say how many trials to draw, with --samples N"));
        };
        if rows.len() * list.len() > MOST {
            return Err(format!("the grid has more than {MOST} trials; draw some of them with --samples N"));
        }
        let with = |row: &Sets, value: &String| [row.clone(), vec![(key.clone(), value.clone())]].concat();
        rows = rows.iter().flat_map(|row| list.iter().map(|value| with(row, value)).collect::<Vec<_>>()).collect();
    }
    Ok(rows)
}

/// Distinct draws; fewer where there are not as many different ones.
fn draws(params: &[Param], samples: usize, seed: u64) -> Vec<Sets> {
    let mut random = Random::new(seed, "sweep");
    let mut rows: Vec<Sets> = Vec::new();
    for _ in 0..samples.saturating_mul(20) {
        let row: Sets = params.iter().map(|p| (p.key.clone(), draw(&p.values, &mut random))).collect();
        if !rows.contains(&row) {
            rows.push(row);
        }
        if rows.len() == samples {
            break;
        }
    }
    rows
}

fn draw(values: &Values, random: &mut Random) -> String {
    match values {
        Values::List(list) => list[random.below(list.len())].clone(),
        Values::Range { low, high, whole } => {
            let x = (low.ln() + f64::from(random.unit()) * (high.ln() - low.ln())).exp();
            if *whole {
                return format!("{}", x.round());
            }
            // Three digits: finer differences mean nothing, and a person copies the value.
            let rounded = format!("{x:.2e}").parse::<f64>().unwrap_or(x);
            format!("{rounded:e}")
        }
    }
}

/// A run's name: lower-case letters, digits, dots, underscores and dashes.
fn name(sets: &Sets) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let word = |(key, value): &(String, String)| {
        let key = key.rsplit('.').next().unwrap_or(key).replace('_', "-");
        format!("{key}_{}", value.chars().map(plain).collect::<String>())
    };
    let name = sets.iter().map(word).collect::<Vec<_>>().join("_");
    let spelled: Vec<String> = sets.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    match name.len() <= 60 {
        true => name,
        false => format!("trial-{}", &sha256_hex(spelled.concat().as_bytes())[..12]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(texts: &[&str]) -> Vec<Param> {
        texts.iter().map(|text| param(text).unwrap()).collect()
    }

    fn told(trials: &[Trial]) -> Vec<String> {
        let set = |t: &Trial| t.sets.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
        trials.iter().map(set).collect()
    }

    #[test]
    fn lists_make_a_grid_and_one_value_has_one_spelling() {
        let grid = trials(&params(&["train.learning_rate=1e-4,0.001,1e-3", "train.r=8,16"]), None, 0).unwrap();
        assert_eq!(
            told(&grid),
            [
                "train.learning_rate=1e-4 train.r=8",
                "train.learning_rate=1e-4 train.r=16",
                "train.learning_rate=1e-3 train.r=8",
                "train.learning_rate=1e-3 train.r=16",
            ]
        );
        assert_eq!(grid[3].name, "learning-rate_1e-3_r_16");
        let long = trials(
            &params(&["train.target_modules=[\"q_proj\"]", "train.adam_epsilon=1e-8", "train.weight_decay=0.015625"]),
            None,
            0,
        );
        assert!(long.unwrap()[0].name.starts_with("trial-"));
    }

    #[test]
    fn draws_are_the_seeds_inside_the_range_and_even_on_a_log_scale() {
        let range = params(&["train.learning_rate=1e-4..1e-2", "train.r=4..64", "train.num_epochs=1,2"]);
        let drawn = trials(&range, Some(300), 7).unwrap();
        assert_eq!(drawn.len(), 300);
        assert_eq!(drawn, trials(&range, Some(300), 7).unwrap());
        assert_ne!(drawn, trials(&range, Some(300), 8).unwrap());
        let rates: Vec<f64> = drawn.iter().map(|t| t.sets[0].1.parse().unwrap()).collect();
        assert!(rates.iter().all(|x| (1e-4..=1e-2).contains(x)));
        // Half of a log-uniform draw lies below the geometric mean: 150 of 300, with a standard deviation of 8.7.
        let below = rates.iter().filter(|x| **x < 1e-3).count();
        assert!((115..=185).contains(&below), "{below}");
        assert!(drawn.iter().all(|t| t.sets[1].1.parse::<u64>().is_ok_and(|r| (4..=64).contains(&r))));
        let few = trials(&params(&["train.r=8,16"]), Some(10), 0).unwrap();
        assert_eq!(few.len(), 2, "there are no more different ones");
    }

    #[test]
    fn mistakes_are_said() {
        for bad in [
            "train.r",
            "data.min_chars=1,2",
            "train.r=",
            "train.r=1,,2",
            "train.r=5..1",
            "train.r=0..1",
            "train.r=a..b",
        ] {
            assert!(param(bad).is_err(), "{bad}");
        }
        let range = params(&["train.learning_rate=1e-4..1e-2"]);
        assert!(trials(&range, None, 0).unwrap_err().contains("--samples"));
        assert!(trials(&params(&["train.r=1", "train.r=2"]), None, 0).unwrap_err().contains("twice"));
    }
}
