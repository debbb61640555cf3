//! The verbs over a store: its log, going back, holding, removing what nobody needs, checking it. The store does the
//! work; here is what a person and a script see of it.

pub mod args;

use crate::exit::{Exit, Failure, Result};
use crate::output::{self, short};
use crate::settings::{Settings, person};
use crate::stores;
use args::{FsckArgs, Gc, HoldArgs, Log, Rollback, StoreArg, StoreVerb};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::store::{
    self, ChannelState, Channels, Head, Hold, LogEntry, Operation, Removable, Retention, Store, fold, holds,
};
use limbeck_artifact::untrusted::visible_line;
use limbeck_artifact::{journal, manifest};
use limbeck_tui::progress::{bytes, count};
use serde_json::json;

pub fn store(settings: &Settings, verb: &StoreVerb) -> Result<Exit> {
    match verb {
        StoreVerb::Log(args) => log(settings, args),
        StoreVerb::Rollback(args) => rollback(settings, args),
        StoreVerb::Hold(args) => hold(settings, args),
        StoreVerb::Gc(args) => gc(settings, args),
        StoreVerb::Fsck(args) => fsck(settings, args),
    }
}

/// A store is made by promoting, never by looking.
pub(super) fn open(at: &StoreArg) -> Result<Store> {
    stores::find(&at.store)?.ok_or_else(|| {
        Failure::new(Exit::Usage, format!("there is no store at {}", at.store.display()))
            .help("`limbeck run RECIPE` makes one when it promotes; name another with --store DIR")
    })
}

fn head_text(head: &Head) -> String {
    format!("{}:{}", head.seq, head.sha256)
}

fn log(settings: &Settings, args: &Log) -> Result<Exit> {
    let store = open(&args.store)?;
    let entries = store.log()?;
    let head = store.head()?;
    if let Some(expected) = &args.expect_head {
        expect(&store, expected)?;
    }
    let wanted = |model: &str, channel: &str| {
        args.channel.as_ref().is_none_or(|of| of == model || *of == format!("{model}/{channel}"))
    };
    let shown: Vec<&LogEntry> = entries.iter().filter(|e| wanted(&e.model, &e.channel)).collect();
    let mut channels = fold(&entries);
    for (model, of) in &mut channels {
        of.retain(|channel, _| wanted(model, channel));
    }
    if settings.json {
        output::json(&json!({
            "store": args.store.store, "entries": shown, "channels": channels, "holds": holds(&entries), "head": head,
        }))?;
        return Ok(Exit::Ok);
    }
    let mut text: String = shown.iter().map(|entry| entry_line(entry) + "\n").collect();
    text.push_str(&channel_lines(&store, &channels));
    for (model, of) in holds(&entries) {
        of.iter().for_each(|(name, version)| text.push_str(&format!("{model} holds {} as {name}\n", short(version))));
    }
    let n = several(entries.len() as u64, "entry", "entries");
    text.push_str(&format!("{n}, head {}\n", head_text(&head)));
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

fn expect(store: &Store, expected: &Head) -> Result<()> {
    if store.holds_head(expected)? {
        return Ok(());
    }
    let message = format!("the log no longer holds entry {}: it was cut short or rewritten", head_text(expected));
    Err(Failure::new(Exit::VerificationFailed, message)
        .help("trust no channel of this store; restore its log from a copy, then `limbeck fsck`"))
}

fn entry_line(entry: &LogEntry) -> String {
    let what = match entry.op {
        Operation::Promote => "promote",
        Operation::Rollback => "roll back",
        Operation::Hold => "hold",
        Operation::Release => "release",
        Operation::Remove => "remove",
        Operation::Trust => "trust",
    };
    let of = match entry.channel.as_str() {
        "" if entry.op == Operation::Trust => "policy".to_owned(),
        "" => entry.model.clone(),
        channel => format!("{}/{channel}", entry.model),
    };
    let versions = match (&entry.op, &entry.from) {
        (Operation::Promote | Operation::Rollback | Operation::Trust, Some(from)) => {
            format!("{} -> {}", short(from), short(&entry.to))
        }
        _ => short(&entry.to).to_owned(),
    };
    let evidence: Vec<String> =
        entry.evidence.iter().map(|(name, digest)| format!("{} {}", visible_line(name), short(digest))).collect();
    let evidence = if evidence.is_empty() { String::new() } else { format!(" · {}", evidence.join(", ")) };
    format!(
        "{:>5}  {}  {what:<9}  {}  {versions}  by {}{evidence}",
        entry.seq,
        visible_line(&entry.at),
        visible_line(&of),
        visible_line(&entry.by)
    )
}

fn channel_lines(store: &Store, channels: &Channels) -> String {
    let line = |model: &String, (channel, state): (&String, &ChannelState)| {
        let named = store.version(&state.version).map_or_else(|_| "not here".to_owned(), |v| v.version);
        format!("{model}/{channel} serves {} ({})\n", short(&state.version), visible_line(&named))
    };
    channels.iter().flat_map(|(model, of)| of.iter().map(move |channel| line(model, channel))).collect()
}

fn rollback(settings: &Settings, args: &Rollback) -> Result<Exit> {
    let store = open(&args.store)?;
    let (model, channel) = (args.channel.model.clone(), args.channel.channel.clone());
    let to = match &args.to {
        None => None,
        Some(start) => {
            let channels = store.channels()?;
            let history = channels.get(&model).and_then(|c| c.get(&channel)).map(|state| state.history.as_slice());
            Some(whole(start, history.unwrap_or_default())?)
        }
    };
    let entry = store.rollback(store::Rollback {
        model,
        channel,
        to,
        evidence: std::collections::BTreeMap::new(),
        by: person(),
        at: journal::now(),
    })?;
    say_entry(settings, &store, &entry)
}

/// The digest that begins like this.
pub(super) fn whole(start: &str, known: &[String]) -> Result<String> {
    let found: Vec<&String> = known.iter().filter(|digest| digest.starts_with(&start.to_lowercase())).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        found if found.windows(2).all(|pair| pair[0] == pair[1]) && !found.is_empty() => Ok(found[0].clone()),
        [] => Err(Failure::new(Exit::Usage, format!("there is no version {} there", visible_line(start)))
            .help("`limbeck log` lists them")),
        _ => Err(Failure::new(Exit::Usage, format!("{start} is the beginning of several versions"))
            .help("write more of the digest")),
    }
}

pub(super) fn say_entry(settings: &Settings, store: &Store, entry: &LogEntry) -> Result<Exit> {
    let head = store.head()?;
    if settings.json {
        output::json(&json!({"entry": entry, "head": head}))?;
    } else {
        output::stdout(&format!("{}\nhead {}\n", entry_line(entry).trim_start(), head_text(&head)))?;
    }
    Ok(Exit::Ok)
}

fn hold(settings: &Settings, args: &HoldArgs) -> Result<Exit> {
    let store = open(&args.store)?;
    let (model, channel) = match args.of.split_once('/') {
        Some((model, channel)) => (model, Some(channel)),
        None => (args.of.as_str(), None),
    };
    if args.release {
        let entry = store.release(model, &args.name, &person(), &journal::now())?;
        return say_entry(settings, &store, &entry);
    }
    let version_digest = match (&args.version, channel) {
        (Some(version), _) => version.clone(),
        (None, Some(channel)) => store.current(model, channel)?,
        (None, None) => {
            return Err(Failure::new(Exit::Usage, "which version is to be held?")
                .help("name the channel that serves it, MODEL/CHANNEL, or the version with --version DIGEST"));
        }
    };
    let hold =
        Hold { model: model.to_owned(), name: args.name.clone(), version_digest, by: person(), at: journal::now() };
    let entry = store.hold(&hold)?;
    say_entry(settings, &store, &entry)
}

fn gc(settings: &Settings, args: &Gc) -> Result<Exit> {
    let store = open(&args.store)?;
    let retention = Retention { keep_last: usize::from(args.keep_last), min_age: args.min_age };
    let told = |v: &Removable| json!({"version": v.digest, "name": v.name, "number": v.version, "bytes": v.bytes});
    let line = |v: &Removable| {
        format!("  {}  {} {}  {}\n", short(&v.digest), visible_line(&v.name), visible_line(&v.version), bytes(v.bytes))
    };
    if args.dry_run {
        let removable = store.removable(retention)?;
        if settings.json {
            output::json(&json!({"removable": removable.iter().map(told).collect::<Vec<_>>()}))?;
        } else {
            let total = removable.iter().map(|v| v.bytes).sum();
            let lines: String = removable.iter().map(line).collect();
            output::stdout(&format!("{lines}{} would go, {}\n", versions(removable.len()), bytes(total)))?;
        }
        return Ok(Exit::Ok);
    }
    let removed = store.remove_unneeded(retention, &person(), &journal::now())?;
    if settings.json {
        let versions: Vec<_> = removed.versions.iter().map(told).collect();
        output::json(&json!({"removed": versions, "blobs": removed.blobs, "bytes": removed.bytes}))?;
    } else {
        let lines: String = removed.versions.iter().map(line).collect();
        let (n, files) = (versions(removed.versions.len()), several(removed.blobs, "file", "files"));
        output::stdout(&format!("{lines}removed {n}, {files}, {}\n", bytes(removed.bytes)))?;
    }
    Ok(Exit::Ok)
}

fn versions(n: usize) -> String {
    several(n as u64, "version", "versions")
}

fn several(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

fn fsck(settings: &Settings, args: &FsckArgs) -> Result<Exit> {
    let store = open(&args.store)?;
    for folder in &args.from {
        let manifest = folder.join(manifest::FILE_NAME);
        let digest = sha256_file(&manifest).map_err(|_| {
            Failure::new(Exit::Usage, format!("{} is no artifact: it holds no manifest.json", folder.display()))
        })?;
        store.mend(folder, &digest)?;
    }
    let repaired = if args.repair { Some(store.repair()?) } else { None };
    let found = store.fsck(args.expect_head.as_ref())?;
    let exit = if found.is_clean() { Exit::Ok } else { Exit::VerificationFailed };
    if settings.json {
        output::json(&json!({
            "clean": found.is_clean(), "problems": found.problems, "entries": found.entries, "versions": found.versions,
            "blobs": found.blobs, "temporary": found.temporary, "head": found.head,
            "repaired": repaired.map(|r| json!({"temporary": r.temporary, "restored": r.restored, "folders": r.folders})),
        }))?;
        return Ok(exit);
    }
    let mut text = String::new();
    if let Some(done) = repaired {
        text.push_str(&format!(
            "removed {} and {} that were not their version, put back {}\n",
            several(done.temporary, "leftover", "leftovers"),
            several(done.folders, "folder", "folders"),
            several(done.restored, "object", "objects")
        ));
    }
    found.problems.iter().for_each(|problem| text.push_str(&format!("problem: {problem}\n")));
    let counted = format!(
        "{}, {}, {} checked by digest",
        several(found.entries, "entry", "entries"),
        several(found.versions, "version", "versions"),
        several(found.blobs, "file", "files")
    );
    text.push_str(&match found.problems.len() {
        0 => format!("ok: {counted}\nhead {}\n", head_text(&found.head)),
        n => format!("{} in {counted}\n", several(n as u64, "problem", "problems")),
    });
    output::stdout(&text)?;
    Ok(exit)
}
