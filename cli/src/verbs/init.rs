//! `limbeck init`: a commented recipe that shows every key.

use crate::args::Init;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::{Settings, shell};
use limbeck_artifact::files::AtomicFile;
use serde_json::json;
use std::io::Write;

pub fn init(settings: &Settings, args: &Init) -> Result<Exit> {
    let name = args
        .folder
        .file_name()
        .map(|n| n.to_string_lossy().to_lowercase().replace([' ', '_'], "-"))
        .unwrap_or_default();
    let path = args.folder.join("recipe.toml");
    let text = limbeck_recipes::template(&name, &args.labels);
    // The template is checked as any recipe is: a name or label that can't be used is told here.
    limbeck_recipes::load_text(&path, &text, &[]).map_err(Failure::recipe)?;
    let mut file = AtomicFile::create(&path)?;
    file.write_all(text.as_bytes())?;
    if !file.commit_new()? {
        let message = format!("{} is there already", path.display());
        return Err(Failure::new(Exit::Usage, message).help("choose another folder; nothing was written"));
    }
    if settings.json {
        output::json(&json!({"recipe": path}))?;
    } else {
        let folder = shell(&args.folder);
        output::stdout(&format!(
            "wrote {}\n\nNext\n  put traces.jsonl and a base model beside it, edit the labels, then\n  limbeck explain {folder}\n  limbeck run {folder}\n",
            path.display()
        ))?;
    }
    Ok(Exit::Ok)
}
