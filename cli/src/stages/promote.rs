//! Promote: the artifact goes into the store, and the channel points at it if its gates passed.

use super::eval::Evaluated;
use super::package::Packaged;
use super::{Finished, Run, StageLine};
use crate::exit::{Exit, Failure, Result};
use crate::settings::{person, shell};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::signer::Signer;
use limbeck_artifact::store::{Promotion, Store};
use limbeck_artifact::trust::{BUILD, EVAL, PROMOTE, step_of_channel};
use limbeck_artifact::{Error, journal, keys, manifest, oms};
use limbeck_eval::Verdict;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

#[derive(Clone, Debug, Serialize)]
pub struct Promoted {
    pub channel: String,
    pub version: String,
    pub seq: u64,
    pub store: String,
}

/// None where the gates did not pass. Not cached: the store may be another one tomorrow, and the same promotion twice
/// is one entry.
pub fn run(
    run: &Run<'_>,
    packaged: &Packaged,
    evaluated: &Finished<Evaluated>,
) -> Result<Option<(Promoted, StageLine)>> {
    let recipe = run.recipe();
    let sink = run.sink.stage(Stage::Promote);
    let verdict = evaluated.summary.verdict;
    if verdict != Verdict::Pass {
        let text = format!("not promoted to {}: the gates say {}", recipe.promote.channel, verdict.name());
        sink.emit(EventKind::Note { text });
        return Ok(None);
    }
    sink.emit(EventKind::StageStarted {});
    let begun = Instant::now();
    let dir = run.dir.join(&packaged.dir);
    // Never trust what lies on disk only because this program once wrote it.
    let key = crate::keys::signer(recipe, &sink)?;
    oms::verify_dir(&dir, &dir.join(manifest::SIGNATURE_FILE_NAME), key.public(), oms::Strictness::Strict)
        .map_err(|e| Failure::of(Exit::VerificationFailed, &e).help("package again; nothing was promoted"))?;
    let store = crate::stores::open_for(&recipe.promote.store, &recipe.encrypt)?;
    let version = store.put_artifact(&dir, &packaged.manifest_digest)?;
    let report = sha256_file(&run.dir.join(&evaluated.summary.report))?;
    let channel = &recipe.promote.channel;
    approve_oneself(&store, &version, channel, key.as_ref())?;
    let wish = Promotion {
        model: recipe.name.clone(),
        channel: channel.clone(),
        version_digest: version.clone(),
        evidence: BTreeMap::from([
            ("report".to_owned(), report),
            ("recipe-lock".to_owned(), run.lock_digest()),
            ("key".to_owned(), keys::key_id(key.public())),
        ]),
        by: person(),
        at: journal::now(),
    };
    let entry = store.promote(wish).map_err(|e| unapproved(e, &dir, &recipe.promote.store, channel))?;
    let wall_ms = begun.elapsed().as_millis() as u64;
    let line = format!(
        "{} serves {} (entry {} of {})",
        entry.channel,
        &version[..12.min(version.len())],
        entry.seq,
        recipe.promote.store.display()
    );
    sink.emit(EventKind::StageFinished { wall_ms, summary: line });
    let promoted =
        Promoted { channel: entry.channel, version, seq: entry.seq, store: recipe.promote.store.display().to_string() };
    Ok(Some((promoted, StageLine { stage: Stage::Promote, cached: false, wall_ms })))
}

/// Whoever runs the recipe gives the approvals that the trust policy lets its key give: running it is saying so.
fn approve_oneself(store: &Store, version: &str, channel: &str, key: &dyn Signer) -> Result<()> {
    let Some(trust) = store.trust()? else { return Ok(()) };
    let id = keys::key_id(key.public());
    let Some((name, _)) = trust.policy.key_by_id(&id) else { return Ok(()) };
    let own = step_of_channel(channel);
    let given = store.approvals(version)?;
    for step in [EVAL, own.as_str()] {
        let roles = &trust.policy.roles;
        let shared = if step == EVAL { None } else { roles.get(PROMOTE) };
        let Some(role) = roles.get(step).or(shared) else { continue };
        let is_given = given.iter().any(|a| a.role == step && a.key == name);
        if role.keys.contains(name) && !role.distinct_from.contains(BUILD) && !is_given {
            crate::verbs::trust::give(store, version, step, key)?;
        }
    }
    Ok(())
}

/// What to do about an approval that is missing, as a command.
pub fn unapproved(error: Error, dir: &Path, store: &Path, channel: &str) -> Failure {
    let Error::Unapproved { reason, .. } = &error else { return error.into() };
    let (dir, store) = (shell(dir), shell(store));
    Failure::new(Exit::ReviewIncomplete, format!("not promoted to {channel} yet: {reason}")).help(format!(
        "`limbeck approve {dir} --store {store} --channel {channel} --key KEY`, then promote again; everything else is done"
    ))
}
