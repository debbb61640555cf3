//! Recipes for the roles that a small model plays beside a large one: schema, gates and guidelines to start from, and made-up calls
//! so that every one runs before there are traces. What a made-up call is worth is said in each recipe.

mod catalogue;
mod made_up;

pub use catalogue::ROLES;

use std::fmt::Write;

/// A role with all that its recipe begins with.
#[derive(Debug)]
pub struct Role {
    /// As `limbeck init --role` knows it.
    pub name: &'static str,
    /// What it does, in a clause.
    pub does: &'static str,
    pub system: &'static str,
    pub answers: Answers,
    /// What a wrong answer costs, and so what the gates ask: TOML.
    pub gates: &'static [&'static str],
    /// For reviewers.
    pub guidelines: &'static str,
    /// Which traces make a real data set of it, and what to beware of.
    pub data: &'static str,
    /// Messages with their answers; `{item}` and the like are filled in.
    pub patterns: &'static [Pattern],
}

/// A message and its answer, both with slots.
#[derive(Debug)]
pub struct Pattern {
    pub message: &'static str,
    pub answer: &'static str,
}

#[derive(Debug)]
pub enum Answers {
    Labels(&'static [&'static str]),
    /// A JSON Schema.
    Fields(&'static str),
}

/// A file of a role's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleFile {
    pub name: &'static str,
    pub text: String,
}

/// Calls that are made up for a role.
const CALLS: usize = 480;

impl Role {
    pub fn named(name: &str) -> Option<&'static Role> {
        ROLES.iter().find(|role| role.name == name)
    }

    /// The folder's files for a recipe of this name, the same bytes each time.
    pub fn files(&self, recipe: &str) -> Vec<RoleFile> {
        let mut files = vec![
            RoleFile { name: "recipe.toml", text: self.recipe(recipe) },
            RoleFile { name: "guidelines.md", text: self.guidelines.trim_start().to_owned() },
            RoleFile { name: "made-up.jsonl", text: made_up::calls(self, CALLS) },
        ];
        if let Answers::Fields(schema) = self.answers {
            files.push(RoleFile { name: "schema.json", text: schema.trim_start().to_owned() });
        }
        files
    }

    fn recipe(&self, name: &str) -> String {
        let mut text = format!(
            "# {name}: {}.\n#\n\
             # Needs:   traces of your own calls in the place of made-up.jsonl, and the base model from the hub, or a local copy:\n\
             #          --set model.base=DIR-OR-GGUF.\n\
             # Launch:  limbeck run {name}, then limbeck review {name}, then limbeck run {name} again\n\
             # Good looks like: every gate passes on your own reviewed calls. On the made-up ones it says that the pipeline works, and\n\
             #          nothing about the task: they are a few dozen sentences with words filled in.\n\
             # Data:    {}\n\
             #\n# Every key there is, with its default: limbeck explain {name}\n\n\
             name = \"{name}\"\nversion = \"0.1.0\"\nseed = 17\n\n[task]\n",
            self.does,
            self.data.replace('\n', "\n#          ")
        );
        let _ = match self.answers {
            Answers::Labels(labels) => {
                let labels: toml::Value = toml::Value::Array(labels.iter().map(|l| (*l).into()).collect());
                writeln!(text, "kind = \"classify\"\nlabels = {labels}")
            }
            Answers::Fields(_) => writeln!(text, "kind = \"extract\"\nschema = \"schema.json\"\nmax_new_tokens = 128"),
        };
        let _ = write!(
            text,
            "guidelines = \"guidelines.md\"\nsystem = {}\n\n\
             [model]\nbase = \"hf:HuggingFaceTB/SmolLM2-135M-Instruct\"\n\
             revision = \"12fd25f77366fa6b3b4b768ec3050bf629380bac\"\nmax_seq_length = 512\n\n\
             [data]\ntraces = [\"made-up.jsonl\"]\n\
             # Made-up sentences are alike; of real ones, near-duplicates are one: take this line out.\nnear_dup_threshold = 1.0\n\
             notes = [\"The calls are made up by `limbeck init --role {}`: what is measured on them is measured on nothing real.\"]\n\n\
             [data.split]\nvalid = 0.06\ncalibration = 0.14\ntest = 0.3\n\n\
             [train]\nr = 16\nlora_alpha = 32\nlearning_rate = 1e-3\nnum_epochs = 3\nbatch_size = 8\n\n\
             [quantize]\nformats = [\"Q8_0\"]\nship = \"Q8_0\"\n\n{}\n[promote]\nchannel = \"staging\"\n",
            toml::Value::from(self.system),
            self.name,
            self.gates.concat().trim_start(),
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_role_is_a_recipe_without_a_mistake() {
        let dir = std::env::temp_dir().join(format!("limbeck-roles-{}", std::process::id()));
        for role in ROLES {
            let at = dir.join(role.name);
            std::fs::create_dir_all(&at).unwrap();
            for file in role.files("mine") {
                std::fs::write(at.join(file.name), &file.text).unwrap();
                assert!(file.text.lines().all(|line| line.chars().count() < 600), "{}: {}", role.name, file.name);
            }
            let resolved = crate::load(Path::new(&at), &[]).unwrap_or_else(|e| panic!("{}: {e}", role.name));
            assert_eq!(resolved.schema.is_some(), matches!(role.answers, Answers::Fields(_)));
            assert!(!resolved.recipe.eval.gates.is_empty(), "{}", role.name);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn patterns_and_answers_fit_together() {
        for role in ROLES {
            let said: BTreeSet<&str> = role.patterns.iter().map(|p| p.answer).collect();
            match role.answers {
                Answers::Labels(labels) => {
                    assert_eq!(
                        said,
                        labels.iter().copied().collect(),
                        "{}: each label is said, and no other",
                        role.name
                    );
                    for label in labels {
                        let n = role.patterns.iter().filter(|p| p.answer == *label).count();
                        assert!(n >= 3, "{}: {n} patterns of {label}", role.name);
                    }
                }
                Answers::Fields(schema) => {
                    let schema = limbeck_artifact::schema::Schema::parse(schema).unwrap();
                    for line in made_up::calls(role, 60).lines() {
                        let call: serde_json::Value = serde_json::from_str(line).unwrap();
                        let answer = call["response"]["choices"][0]["message"]["content"].as_str().unwrap();
                        let broken = call["id"].as_str().unwrap().ends_with("-slip");
                        assert_eq!(schema.canonical_text(answer).is_ok(), !broken, "{}: {answer}", role.name);
                    }
                }
            }
        }
    }

    #[test]
    fn calls_are_different_and_some_are_slips() {
        for role in ROLES {
            let text = made_up::calls(role, CALLS);
            let calls: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            let asked: BTreeSet<&str> =
                calls.iter().map(|c| c["request"]["messages"][1]["content"].as_str().unwrap()).collect();
            assert!(asked.len() > CALLS * 9 / 10, "{}: {} of {CALLS} differ", role.name, asked.len());
            let slips = calls.iter().filter(|c| c["id"].as_str().unwrap().ends_with("-slip")).count();
            assert!((CALLS / 30..CALLS / 10).contains(&slips), "{}: {slips}", role.name);
            assert_eq!(text, made_up::calls(role, CALLS), "{}", role.name);
        }
    }
}
