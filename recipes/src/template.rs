//! The recipe that `limbeck init` writes: every key with its default and what it does, so that the file is its own
//! reference page.

use crate::schema::{self, ARMS, Array, FIELDS, GATES, JUDGES, Need};
use std::fmt::Write;

const GATES_TO_START_WITH: &str = r#"
# Gates decide whether the artifact is promoted. Each judges the shipped file on the test split.
[[eval.gate]]
kind = "improvement"
over = "base"
min = 0.4

[[eval.gate]]
kind = "non_inferiority"
against = "frontier"
margin = 0.05

[[eval.gate]]
kind = "quantization"
against = "tuned"
max_agreement_loss = 0.02
"#;

/// Two texts that say the same are seldom the same: ROUGE-L tells a loss, and only people tell whether a text is good.
const GATES_OF_TEXT: &str = r#"
# Gates decide whether the artifact is promoted. Each judges the shipped file on the test split.
[[eval.gate]]
kind = "floor"
metric = "rouge_l"
min = 0.4

[[eval.gate]]
kind = "floor"
metric = "validity"
min = 0.95
"#;

/// Of labels: their posteriors may hardly move. A Q8_0 file's move by a tenth of it.
const KL_TO_START_WITH: &str = "max_kl = 0.02\n";

/// What the recipe's task is.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// One of these labels; two placeholders when empty.
    Labels(&'a [String]),
    /// Fields as `schema.json` beside the recipe says.
    Fields,
    /// A text.
    Text,
}

/// A commented recipe named `name`.
pub fn template(name: &str, asked: Asked<'_>) -> String {
    let (kind, schema) = match asked {
        Asked::Labels(_) => ("classify", ""),
        Asked::Fields => ("extract", " schema.json for the answer's fields,"),
        Asked::Text => ("generate", ""),
    };
    let mut text = format!(
        "# {name}: what this recipe makes, in one sentence.\n\
         # Needs: traces.jsonl beside this file (chat-completion traces, one recorded call a line),{schema} and a base model.\n\
         # Launch: limbeck run {name}\n\
         # Good looks like: every gate passes; the report shows the tuned file near the frontier model.\n\
         #\n\
         # A line that starts with `#` and a key shows the default; every value is listed by `limbeck explain {name}`.\n\n"
    );
    let mut section = "";
    for field in FIELDS {
        let of = schema::parent(field.key);
        if of != section {
            if section == "eval" {
                gates(&mut text, asked);
            }
            let _ = write!(text, "\n[{of}]\n");
            section = of;
        }
        let key = field.key[of.len()..].trim_start_matches('.');
        match field.need {
            Need::Of(other) if other != kind => continue,
            Need::OptionalOf(others) if !others.contains(&kind) => continue,
            _ => {}
        }
        let _ = match (field.key, field.need) {
            ("name", _) => writeln!(text, "name = \"{name}\" # {}", field.doc),
            ("task.kind", _) if kind != "classify" => writeln!(text, "kind = \"{kind}\" # {}", field.doc),
            ("task.labels", _) => writeln!(text, "labels = {} # {}", list(asked), field.doc),
            ("task.schema", _) => writeln!(text, "schema = \"schema.json\" # {}", field.doc),
            ("task.max_new_tokens", _) => writeln!(text, "# {key} = 256 # {}", field.doc),
            ("task.constrained", _) => writeln!(text, "# {key} = true # {}", field.doc),
            ("model.base", _) => writeln!(text, "base = \"base.gguf\" # {}", field.doc),
            ("data.traces", _) => writeln!(text, "traces = [\"traces.jsonl\"] # {}", field.doc),
            (_, Need::Default(value)) => writeln!(text, "# {key} = {value} # {}", field.doc),
            (_, _) => writeln!(text, "# {key} = \"…\" # {}", field.doc),
        };
    }
    text
}

fn list(asked: Asked<'_>) -> String {
    let labels: Vec<toml::Value> = match asked {
        Asked::Labels([]) | Asked::Fields | Asked::Text => vec!["first_label".into(), "second_label".into()],
        Asked::Labels(labels) => labels.iter().map(|l| l.as_str().into()).collect(),
    };
    toml::Value::Array(labels).to_string()
}

fn gates(text: &mut String, asked: Asked<'_>) {
    text.push_str(match asked {
        Asked::Text => GATES_OF_TEXT,
        Asked::Labels(_) | Asked::Fields => GATES_TO_START_WITH,
    });
    if let Asked::Labels(_) = asked {
        text.push_str(KL_TO_START_WITH);
    }
    let mut arrays = vec![(GATES, "Further kinds of"), (ARMS, "More to compare with on the same rows, as")];
    if let Asked::Text = asked {
        arrays.push((JUDGES, "A live model that compares texts, as"));
    }
    for (array, head) in arrays {
        let Array { key, kinds, .. } = array;
        let _ = write!(text, "\n# {head} [[{key}]]:\n");
        for kind in kinds {
            let keys: Vec<&str> = kind.fields.iter().map(|f| f.key).collect();
            let _ = writeln!(text, "#   {} ({}): {}", kind.kind, keys.join(", "), kind.doc);
        }
    }
}
