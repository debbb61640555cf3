//! How a command ends: the exit codes that CI relies on, and the failure that carries one to the edge together with what
//! happened and what to try.

use limbeck_recipes::RecipeErrors;
use std::fmt;

/// The program's exit codes; they never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    Unexpected = 1,
    Usage = 2,
    RecipeInvalid = 3,
    GateFailed = 4,
    ReviewIncomplete = 5,
    VerificationFailed = 6,
    Inconclusive = 7,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }

    /// As diagnostics and `--json` name it.
    pub fn name(self) -> &'static str {
        match self {
            Exit::Ok => "ok",
            Exit::Unexpected => "unexpected",
            Exit::Usage => "usage",
            Exit::RecipeInvalid => "recipe-invalid",
            Exit::GateFailed => "gate-failed",
            Exit::ReviewIncomplete => "review-incomplete",
            Exit::VerificationFailed => "verification-failed",
            Exit::Inconclusive => "inconclusive",
        }
    }
}

/// Why a command stopped.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    /// What led to it, the nearest first.
    pub causes: Vec<String>,
    pub help: Option<String>,
    /// Set when a recipe is at fault; shown with excerpts instead of the message.
    pub recipe: Option<RecipeErrors>,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), causes: Vec::new(), help: None, recipe: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Failure {
        self.help = Some(help.into());
        self
    }

    pub fn recipe(errors: RecipeErrors) -> Failure {
        let n = errors.errors.len();
        let message = format!("the recipe has {n} mistake{}", if n == 1 { "" } else { "s" });
        Failure { recipe: Some(errors), ..Failure::new(Exit::RecipeInvalid, message) }
    }

    /// `error` and what led to it, under another exit code than 1.
    pub fn of(exit: Exit, error: &dyn std::error::Error) -> Failure {
        let whole = error.to_string();
        // The rooms end a message with what to try; the edge shows that apart.
        let (message, help) = ["\nhint: ", ". Try: "]
            .iter()
            .find_map(|mark| whole.split_once(mark))
            .map_or((whole.as_str(), None), |(message, help)| (message, Some(help.to_owned())));
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many messages already end with their cause.
            if !whole.contains(&text) {
                causes.push(text);
            }
            source = cause.source();
        }
        Failure { exit, message: message.to_owned(), causes, help, recipe: None }
    }
}

/// Whatever a room can't do is unexpected unless the verb says otherwise, or it is a matter of trust.
impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Failure {
        let exit = match (&error as &(dyn std::error::Error + 'static)).downcast_ref() {
            Some(limbeck_artifact::Error::Untrusted { .. }) => Exit::VerificationFailed,
            Some(limbeck_artifact::Error::Unapproved { .. }) => Exit::ReviewIncomplete,
            _ => Exit::Unexpected,
        };
        Failure::of(exit, &error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to read x: {source}\nhint: look at x")]
    struct Outer {
        source: std::io::Error,
    }

    #[test]
    fn a_rooms_error_keeps_its_exit_code_cause_and_hint() {
        let failure = Failure::from(Outer { source: std::io::Error::other("disk gone") });
        assert_eq!(failure.exit, Exit::Unexpected);
        assert_eq!(failure.message, "failed to read x: disk gone");
        assert_eq!(failure.help.as_deref(), Some("look at x"));
        assert!(failure.causes.is_empty(), "already in the message: {:?}", failure.causes);
    }
}
