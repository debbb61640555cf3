//! What can be wrong with a recipe: always a list, so that one look at it is enough. Each error says where, what was
//! expected, and what to try.

use crate::source::Place;
use std::fmt;

#[derive(Clone, Debug)]
pub struct RecipeError {
    pub message: String,
    /// Where it happened; none when the file could not be read at all.
    pub place: Option<Place>,
    /// What to try next.
    pub hint: Option<String>,
}

/// One or more errors, in the order of the text.
#[derive(Clone, Debug, thiserror::Error)]
pub struct RecipeErrors {
    pub errors: Vec<RecipeError>,
}

impl RecipeError {
    pub(crate) fn new(message: impl Into<String>, place: Option<Place>) -> RecipeError {
        RecipeError { message: message.into(), place, hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> RecipeError {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            let (line, column) = place.line_column();
            writeln!(f, "{}:{line}:{column}: {}", place.source.name, self.message)?;
            write!(f, "{}", place.excerpt())?;
        } else {
            writeln!(f, "{}", self.message)?;
        }
        if let Some(hint) = &self.hint {
            writeln!(f, "  hint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RecipeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl From<RecipeError> for RecipeErrors {
    fn from(error: RecipeError) -> RecipeErrors {
        RecipeErrors { errors: vec![error] }
    }
}
