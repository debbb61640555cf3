//! `limbeck init`: a commented recipe that shows every key.

use crate::args::Init;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::{Settings, shell};
use limbeck_artifact::files::AtomicFile;
use limbeck_artifact::schema::Schema;
use limbeck_recipes::{Asked, Role};
use serde_json::json;
use std::io::Write;
use std::path::Path;

pub fn init(settings: &Settings, args: &Init) -> Result<Exit> {
    let name = args
        .folder
        .file_name()
        .map(|n| n.to_string_lossy().to_lowercase().replace([' ', '_'], "-"))
        .unwrap_or_default();
    if let Some(role) = args.role.as_deref().and_then(Role::named) {
        return of_role(settings, args, &name, role);
    }
    let path = args.folder.join("recipe.toml");
    let asked = match (args.fields.is_empty(), args.generate) {
        (false, _) => Asked::Fields,
        (true, true) => Asked::Text,
        (true, false) => Asked::Labels(&args.labels),
    };
    let text = limbeck_recipes::template(&name, asked);
    // The template is checked as any recipe is: a name or label that can't be used is told here.
    limbeck_recipes::load_text(&path, &text, &[]).map_err(Failure::recipe)?;
    let schema = (!args.fields.is_empty()).then(|| schema(&args.fields)).transpose()?;
    write_new(&path, &text)?;
    if let Some(text) = &schema {
        write_new(&args.folder.join("schema.json"), text)?;
    }
    if settings.json {
        let schema = schema.map(|_| args.folder.join("schema.json"));
        output::json(&json!({"recipe": path, "schema": schema}))?;
    } else {
        let edit = match asked {
            Asked::Fields => ", describe the fields in schema.json",
            Asked::Labels(_) => ", edit the labels",
            Asked::Text => "",
        };
        let folder = shell(&args.folder);
        let beside = if schema.is_some() { " and schema.json" } else { "" };
        output::stdout(&format!(
            "wrote {}{beside}\n\nNext\n  put traces.jsonl and a base model beside it{edit}, then\n  limbeck explain {folder}\n  limbeck run {folder}\n",
            path.display()
        ))?;
    }
    Ok(Exit::Ok)
}

/// A role's files; the recipe comes last, so that one that is there has everything it names.
fn of_role(settings: &Settings, args: &Init, name: &str, role: &Role) -> Result<Exit> {
    let mut files = role.files(name);
    files.rotate_left(1);
    let recipe = args.folder.join("recipe.toml");
    if let Some(text) = files.last().map(|file| file.text.as_str()) {
        limbeck_recipes::load_text(&recipe, text, &[]).map_err(Failure::recipe)?;
    }
    let paths: Vec<_> = files.iter().map(|file| args.folder.join(file.name)).collect();
    if let Some(there) = paths.iter().find(|path| path.exists()) {
        return Err(there_already(there));
    }
    for (path, file) in paths.iter().zip(&files) {
        write_new(path, &file.text)?;
    }
    if settings.json {
        output::json(&json!({"recipe": recipe, "role": role.name, "files": paths}))?;
        return Ok(Exit::Ok);
    }
    let names: Vec<&str> = files.iter().map(|file| file.name).collect();
    let folder = shell(&args.folder);
    output::stdout(&format!(
        "wrote {} to {}: the role {}\n  made-up.jsonl  made-up calls: they show that the pipeline works, and nothing about the task\n\n\
         Next\n  limbeck run {folder}       as far as the review\n  limbeck review {folder}    then run it again\n  \
         put traces of your own in the place of made-up.jsonl ({}: data.traces)\n",
        names.join(", "),
        args.folder.display(),
        role.name,
        recipe.display(),
    ))?;
    Ok(Exit::Ok)
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(text.as_bytes())?;
    if file.commit_new()? {
        return Ok(());
    }
    Err(there_already(path))
}

fn there_already(path: &Path) -> Failure {
    Failure::new(Exit::Usage, format!("{} is there already", path.display()))
        .help("choose another folder; nothing was written over")
}

/// A schema of texts, none of them required.
fn schema(fields: &[String]) -> Result<String> {
    let property = |name: &String| {
        format!(
            "    {}: {{\"type\": \"string\", \"description\": \"what this is, as the message says it\"}}",
            json!(name)
        )
    };
    let properties: Vec<String> = fields.iter().map(property).collect();
    let text = format!(
        "{{\n  \"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n  \"type\": \"object\",\n  \"properties\": {{\n{}\n  }},\n  \"additionalProperties\": false\n}}\n",
        properties.join(",\n")
    );
    match Schema::parse(&text) {
        Ok(_) => Ok(text),
        Err(e) => Err(Failure::new(Exit::Usage, format!("these fields make no schema: {e}"))
            .help("give each field a name of its own, separated by commas")),
    }
}
