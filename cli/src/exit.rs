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
    pub fn of(exit: Exit, error: &(dyn std::error::Error + 'static)) -> Failure {
        let whole = error.to_string();
        // The rooms end a message with what to try; the edge shows that apart.
        let (message, help) = ["\nhint: ", ". Try: "]
            .iter()
            .find_map(|mark| whole.split_once(mark))
            .map_or((whole.as_str(), None), |(message, help)| (message, Some(help.to_owned())));
        let mut causes = Vec::new();
        let mut source = error.source();
        let mut help = help.or_else(|| of_the_disk(error));
        while let Some(cause) = source {
            help = help.or_else(|| of_the_disk(cause));
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

/// What to try where the system says that there is no room.
fn of_the_disk(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let help = match error.downcast_ref::<std::io::Error>()?.kind() {
        StorageFull | QuotaExceeded => {
            "make room there and run the same command again: what was finished before stands"
        }
        ReadOnlyFilesystem => "write somewhere else, or have the file system mounted for writing",
        _ => return None,
    };
    Some(help.to_owned())
}

/// Whatever a room can't do is unexpected unless the verb says otherwise, or it is a matter of trust.
impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Failure {
        let exit = match (&error as &(dyn std::error::Error + 'static)).downcast_ref() {
            Some(limbeck_artifact::Error::Untrusted { .. }) => Exit::VerificationFailed,
            Some(limbeck_artifact::Error::Unapproved { .. }) => Exit::ReviewIncomplete,
            Some(limbeck_artifact::Error::Locked { .. }) => {
                return Failure::of(Exit::Unexpected, &error).help(crate::stores::LOCKED);
            }
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
    use std::path::Path;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to read x: {source}\nhint: look at x")]
    struct Outer {
        source: std::io::Error,
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let full = |kind| Outer { source: std::io::Error::from(kind) };
        let failure =
            Failure::from(limbeck_artifact::manifest::ArtifactManifest::load(Path::new("/nowhere")).unwrap_err());
        assert_eq!(failure.help, None);
        let failure = Failure::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(failure.help.unwrap().contains("make room"));
        let failure = Failure::from(full(std::io::ErrorKind::StorageFull));
        assert_eq!(failure.help.as_deref(), Some("look at x"), "a room knows better");
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
