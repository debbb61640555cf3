//! `limbeck gguf diff`: keys that differ, tensors that one file lacks or stores otherwise, and how far their values are apart.

use super::args::GgufDiff;
use super::{dims, line, open};
use crate::exit::{Exit, Result};
use crate::output;
use crate::settings::Settings;
use limbeck_artifact::untrusted::visible_line;
use limbeck_model::gguf::{GgufFile, TensorInfo};
use limbeck_tui::progress::count;
use serde::Serialize;
use serde_json::json;

/// A key or a tensor in both files, otherwise in each; or in one of them.
#[derive(Serialize)]
struct Change {
    name: String,
    a: Option<String>,
    b: Option<String>,
    /// Of tensors of one shape: root mean square of the difference over that of A's values.
    #[serde(skip_serializing_if = "Option::is_none")]
    relative_rmse: Option<f64>,
}

pub fn diff(settings: &Settings, args: &GgufDiff) -> Result<Exit> {
    let (a, b) = (open(&args.a)?, open(&args.b)?);
    let keys = keys(&a, &b);
    let (tensors, equal) = tensors(&a, &b)?;
    if settings.json {
        output::json(&json!({"a": args.a, "b": args.b, "metadata": keys, "tensors": tensors, "equal_tensors": equal}))?;
        return Ok(Exit::Ok);
    }
    let mut text = format!("A {}\nB {}\n", args.a.display(), args.b.display());
    if keys.is_empty() && tensors.is_empty() {
        text += &format!("the same metadata, and {} tensors with the same bytes\n", count(equal));
    }
    let side = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for (title, changes) in [("Metadata", &keys), ("Tensors", &tensors)] {
        if !changes.is_empty() {
            text += &format!("\n{title}\n");
        }
        for change in changes {
            let apart = change.relative_rmse.map_or(String::new(), |e| format!("\n    apart by {e:.3e} of A's size"));
            let name = visible_line(&change.name);
            text += &format!("  {name}\n    A {}\n    B {}{apart}\n", side(&change.a), side(&change.b));
        }
    }
    if !tensors.is_empty() {
        text += &format!("\n{} tensors have the same bytes\n", count(equal));
    }
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

fn keys(a: &GgufFile, b: &GgufFile) -> Vec<Change> {
    let own = a.metadata().iter().map(|(key, _)| key);
    let new = b.metadata().iter().map(|(key, _)| key).filter(|key| a.get(key).is_none());
    own.chain(new)
        .filter(|key| a.get(key) != b.get(key))
        .map(|key| {
            let text = |file: &GgufFile| file.get(key).map(|value| line(value, false));
            Change { name: key.clone(), a: text(a), b: text(b), relative_rmse: None }
        })
        .collect()
}

/// Those that differ, and how many don't.
fn tensors(a: &GgufFile, b: &GgufFile) -> Result<(Vec<Change>, u64)> {
    let (mut changes, mut equal) = (Vec::new(), 0);
    let text = |info: &TensorInfo| format!("{} {}", info.ty, dims(info));
    for info in a.tensors() {
        let other = b.tensor(&info.name);
        if let Some(other) = other
            && (info.ty, &info.dims) == (other.ty, &other.dims)
            && same_bytes((a, info), (b, other))?
        {
            equal += 1;
            continue;
        }
        let apart = match other {
            Some(other) if info.dims == other.dims && info.ty.decodable() && other.ty.decodable() => {
                Some(relative_rmse((a, info), (b, other))?)
            }
            _ => None,
        };
        let (own, other) = (Some(text(info)), other.map(text));
        changes.push(Change { name: info.name.clone(), a: own, b: other, relative_rmse: apart });
    }
    for info in b.tensors().iter().filter(|info| a.tensor(&info.name).is_none()) {
        changes.push(Change { name: info.name.clone(), a: None, b: Some(text(info)), relative_rmse: None });
    }
    Ok((changes, equal))
}

/// A tensor in its file.
type In<'f> = (&'f GgufFile, &'f TensorInfo);

fn same_bytes((a, of_a): In<'_>, (b, of_b): In<'_>) -> Result<bool> {
    for (a, b) in a.pieces_of_bytes(of_a).zip(b.pieces_of_bytes(of_b)) {
        if a? != b? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn relative_rmse((a, of_a): In<'_>, (b, of_b): In<'_>) -> Result<f64> {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let (mut error, mut size) = (0.0, 0.0);
    for (a, b) in a.pieces(of_a).zip(b.pieces(of_b)) {
        for (a, b) in a?.iter().zip(b?) {
            error += square(a - b);
            size += square(*a);
        }
    }
    Ok(if size > 0.0 { (error / size).sqrt() } else { error.sqrt() })
}
