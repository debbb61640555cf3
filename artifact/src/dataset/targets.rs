//! What a frozen dataset's targets must be, and what a card counts them as: anything, labels, or what a schema allows, fields
//! or a text.

use super::{DatasetCard, FREEZE_AGAIN};
use crate::schema::Schema;
use crate::{Error, Result};
use serde_json::Value;
use std::borrow::Cow;
use std::path::Path;

/// What a dataset's targets must be.
pub(super) enum Targets {
    Any,
    Labels(Vec<String>),
    Fields(Schema),
}

impl Targets {
    /// Errors where the card's schema is none.
    pub(super) fn of(card: &DatasetCard) -> Result<Targets> {
        match &card.schema {
            None if card.labels.is_empty() => Ok(Targets::Any),
            None => Ok(Targets::Labels(card.labels.clone())),
            Some(text) => Schema::parse(text).map(Targets::Fields).map_err(|e| {
                Error::invalid(Path::new("dataset.json"), format!("its schema can't be used: {e}"), FREEZE_AGAIN)
            }),
        }
    }

    /// What a card counts a target as. What was written is the customers' and has no place in a card.
    pub(super) fn class<'t>(&self, target: &'t str) -> Cow<'t, str> {
        let Targets::Fields(schema) = self else { return Cow::Borrowed(target) };
        if schema.is_text() {
            return Cow::Borrowed("(text)");
        }
        let said: serde_json::Map<String, Value> = serde_json::from_str(target).unwrap_or_default();
        let names: Vec<&str> =
            schema.fields().iter().map(|f| f.name.as_str()).filter(|name| said.contains_key(*name)).collect();
        Cow::Owned(if names.is_empty() { "(no field)".to_owned() } else { names.join(", ") })
    }

    pub(super) fn check(&self, target: &str) -> std::result::Result<(), String> {
        match self {
            Targets::Any => Ok(()),
            Targets::Labels(labels) => match labels.binary_search_by(|label| label.as_str().cmp(target)) {
                Ok(_) => Ok(()),
                Err(_) => Err("a target outside the taxonomy".to_owned()),
            },
            Targets::Fields(schema) => match schema.canonical_text(target) {
                Ok(canonical) if canonical == target => Ok(()),
                Ok(_) => Err("a target that is not in the schema's canonical form".to_owned()),
                Err(fault) => Err(format!("a target that the schema does not allow ({fault})")),
            },
        }
    }
}
