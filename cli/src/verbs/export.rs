//! `limbeck export`: a verified artifact in the form that a serving stack takes. Nothing is converted: the files that were
//! evaluated and signed are copied, beside what their server has to be told.

use super::score::find;
use crate::args::{Export, Form};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, short};
use crate::settings::{Settings, shell};
use crate::stages::cannot;
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::manifest::{ArtifactManifest, Task};
use limbeck_artifact::oci::{self, About};
use limbeck_artifact::untrusted::visible_line;
use limbeck_model::gguf::{GgufFile, Value};
use limbeck_model::weights::Weights;
use limbeck_quantize::write_adapter;
use limbeck_tui::progress::bytes;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What was made, and what to do with it.
struct Made {
    files: Vec<PathBuf>,
    /// An OCI image's.
    digest: Option<String>,
    next: Vec<String>,
    notes: Vec<String>,
}

pub fn export(settings: &Settings, args: &Export) -> Result<Exit> {
    let (dir, manifest) = find(&args.of)?;
    refuse_full(&args.out)?;
    let made = match args.form {
        Form::Oci => image(&dir, &manifest, args)?,
        Form::LlamaServer => llama_server(&dir, &manifest, &args.out)?,
        Form::Ollama => ollama(&dir, &manifest, &args.out)?,
        Form::Peft => peft(&dir, &manifest, &args.out)?,
        Form::LlamaAdapter => llama_adapter(&dir, &manifest, &args.out)?,
    };
    if settings.json {
        output::json(&json!({
            "out": args.out, "files": made.files, "digest": made.digest, "next": made.next, "notes": made.notes,
        }))?;
        return Ok(Exit::Ok);
    }
    let total: u64 = made.files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
    let (name, version) = (visible_line(&manifest.name), visible_line(&manifest.version));
    let mut text = format!("{}: {name} {version}, {}\n", args.out.display(), bytes(total));
    made.digest.iter().for_each(|digest| text.push_str(&format!("  digest  {digest}\n")));
    made.notes.iter().for_each(|note| text.push_str(&format!("  note    {note}\n")));
    made.next.iter().for_each(|next| text.push_str(&format!("  next    {next}\n")));
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

/// Somebody else's files are not written over.
fn refuse_full(out: &Path) -> Result<()> {
    let is_empty = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    match is_empty {
        true => Ok(()),
        false => Err(Failure::new(Exit::Usage, format!("{} is there already", out.display()))
            .help("name a folder that does not exist yet")),
    }
}

fn image(dir: &Path, manifest: &ArtifactManifest, args: &Export) -> Result<Made> {
    let file = GgufFile::open(&manifest.file(dir, "model")?)?;
    let about = About { family: architecture(&file), quantization: quantization(&file) };
    let tag = args.tag.clone().unwrap_or_else(|| manifest.version.clone());
    let layout = oci::write_layout(dir, manifest, &about, &tag, &args.out)?;
    let at = format!("oci:{}:{}", shell(&args.out), layout.tag);
    let mut files = vec![args.out.join("oci-layout"), args.out.join("index.json")];
    let blobs = args.out.join("blobs/sha256");
    for entry in std::fs::read_dir(&blobs).map_err(|e| cannot("list", &blobs, &e))? {
        files.push(entry.map_err(|e| cannot("list", &blobs, &e))?.path());
    }
    files.sort();
    Ok(Made {
        files,
        digest: Some(layout.digest),
        next: vec![
            format!("skopeo copy {at} docker://REGISTRY/{}:{}", manifest.name, layout.tag),
            format!("skopeo copy {at}.sig docker://REGISTRY/{}:{}.sig", manifest.name, layout.tag),
        ],
        notes: vec![
            "each file is a layer under the digest that was signed; `limbeck verify` checks them once pulled"
                .to_owned(),
        ],
    })
}

fn architecture(file: &GgufFile) -> Option<String> {
    file.get("general.architecture").and_then(Value::as_str).map(str::to_owned)
}

/// The type of most weights.
fn quantization(file: &GgufFile) -> Option<String> {
    let mut types = std::collections::BTreeMap::<&str, u64>::new();
    for tensor in file.tensors() {
        *types.entry(tensor.ty.name()).or_default() += tensor.n_elements();
    }
    types.into_iter().max_by_key(|(_, n)| *n).map(|(name, _)| name.to_owned())
}

/// Copies the file with a role, checked against the manifest as it lands.
fn copy(dir: &Path, manifest: &ArtifactManifest, name: &str, to: &Path) -> Result<PathBuf> {
    let (source, target) = (dir.join(name), to.join(Path::new(name).file_name().unwrap_or_default()));
    std::fs::create_dir_all(to).map_err(|e| cannot("make the folder", to, &e))?;
    std::fs::copy(&source, &target).map_err(|e| cannot("copy", &source, &e))?;
    let wanted = manifest.files.get(name).map(|file| file.sha256.as_str());
    if Some(sha256_file(&target)?.as_str()) != wanted {
        return Err(Failure::new(Exit::VerificationFailed, format!("{name} changed while it was copied")));
    }
    Ok(target)
}

fn with_role(manifest: &ArtifactManifest, role: &str) -> Vec<String> {
    manifest.files.iter().filter(|(_, file)| file.role == role).map(|(name, _)| name.clone()).collect()
}

fn model(dir: &Path, manifest: &ArtifactManifest, out: &Path) -> Result<(PathBuf, String)> {
    let name = with_role(manifest, "model")
        .into_iter()
        .next()
        .ok_or_else(|| Failure::new(Exit::Unexpected, "the artifact names no model file").help("package it again"))?;
    let path = copy(dir, manifest, &name, out)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((path, file))
}

fn write(path: PathBuf, text: &str) -> Result<PathBuf> {
    write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
    Ok(path)
}

/// Room for the prompts that were trained on, and the answer.
fn context(file: &Path) -> Result<u64> {
    let file = GgufFile::open(file)?;
    let key = format!("{}.context_length", architecture(&file).unwrap_or_default());
    Ok(file.get(&key).and_then(Value::as_u64).unwrap_or(2048).min(8192))
}

fn llama_server(dir: &Path, manifest: &ArtifactManifest, out: &Path) -> Result<Made> {
    let (path, file) = model(dir, manifest, out)?;
    let context = context(&path)?;
    let mut body = json!({"model": manifest.name, "messages": messages(manifest), "temperature": 0});
    let mut files = vec![path];
    let mut notes =
        vec!["the server answers with text alone: no threshold, no escalation. `limbeck serve` has both".to_owned()];
    let task = &manifest.task;
    if let Some(schema) = answer_schema(task)? {
        body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
        notes.push(CONSTRAINED_THERE.to_owned());
    } else if task.schema.is_none() {
        let grammar = grammar(&task.labels);
        files.push(write(out.join("labels.gbnf"), &grammar)?);
        body["grammar"] = json!(grammar);
        notes.push("labels.gbnf allows the labels only; request.json sends it along".to_owned());
    }
    files.push(write(out.join("request.json"), &(serde_json::to_string_pretty(&body)? + "\n"))?);
    let script = format!(
        "#!/bin/sh\n# {} {} with llama.cpp's server. Its request: request.json.\ncd \"$(dirname \"$0\")\" || exit 1\n\
         exec \"${{LLAMA_SERVER:-llama-server}}\" --model {file} --alias {} --ctx-size {context} --jinja \\\n    \
         --host 127.0.0.1 --port \"${{PORT:-8081}}\" \"$@\"\n",
        manifest.name, manifest.version, manifest.name
    );
    files.push(write(out.join("run.sh"), &script)?);
    let next = vec![
        format!("sh {}", shell(&out.join("run.sh"))),
        format!("curl http://127.0.0.1:8081/v1/chat/completions -d @{}", shell(&out.join("request.json"))),
    ];
    Ok(Made { files, digest: None, next, notes })
}

/// Of a grammar that is not ours.
const CONSTRAINED_THERE: &str = "request.json asks the server to keep answers to the schema; its grammar lets white space and spellings \
                                 through that `limbeck serve` does not write";

/// The schema that answers are to be kept to, in JSON; none where they are labels or texts, or were evaluated written freely.
fn answer_schema(task: &Task) -> Result<Option<serde_json::Value>> {
    let schema = task.schema.as_ref().filter(|_| !task.is_text() && task.constrained != Some(false));
    Ok(schema.map(|schema| serde_json::from_str(schema)).transpose()?)
}

fn messages(manifest: &ArtifactManifest) -> serde_json::Value {
    let system = manifest.task.system.iter().map(|text| json!({"role": "system", "content": text}));
    system.chain([json!({"role": "user", "content": "PUT THE MESSAGE HERE"})]).collect()
}

/// llama.cpp's grammar of exactly these answers.
fn grammar(labels: &[String]) -> String {
    let quoted: Vec<String> = labels.iter().map(|label| literal(label)).collect();
    format!("root ::= {}\n", quoted.join(" | "))
}

fn literal(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn ollama(dir: &Path, manifest: &ArtifactManifest, out: &Path) -> Result<Made> {
    let (path, file) = model(dir, manifest, out)?;
    let context = context(&path)?;
    let mut text = format!("# {} {}\nFROM ./{file}\n", manifest.name, manifest.version);
    if let Some(system) = &manifest.task.system {
        if system.contains("\"\"\"") {
            return Err(Failure::new(
                Exit::Unexpected,
                "the system prompt holds three quotation marks in a row, which a Modelfile can't",
            ));
        }
        text.push_str(&format!("SYSTEM \"\"\"{system}\"\"\"\n"));
    }
    let longest = manifest.task.max_new_tokens.unwrap_or(64);
    text.push_str(&format!("PARAMETER temperature 0\nPARAMETER num_ctx {context}\nPARAMETER num_predict {longest}\n"));
    let mut files = vec![path, write(out.join("Modelfile"), &text)?];
    let mut notes = vec![
        "Ollama reads the chat template out of the file and rewrites it; compare a few answers with `limbeck score`"
            .to_owned(),
        "it answers with text alone: no threshold, no escalation. `limbeck serve` has both".to_owned(),
    ];
    let mut next = vec![
        format!("ollama create {} -f {}", manifest.name, shell(&out.join("Modelfile"))),
        format!("ollama run {} \"a message\"", manifest.name),
    ];
    if let Some(schema) = answer_schema(&manifest.task)? {
        let body = json!({"model": manifest.name, "messages": messages(manifest), "stream": false, "format": schema});
        let request = out.join("request.json");
        next[1] = format!("curl http://127.0.0.1:11434/api/chat -d @{}", shell(&request));
        files.push(write(request, &(serde_json::to_string_pretty(&body)? + "\n"))?);
        notes.push(CONSTRAINED_THERE.to_owned());
    }
    Ok(Made { files, digest: None, next, notes })
}

/// The adapter's files.
fn adapter_names(manifest: &ArtifactManifest) -> Result<Vec<String>> {
    let names = with_role(manifest, "adapter");
    if names.is_empty() {
        return Err(Failure::new(Exit::Usage, "the artifact has no adapter: all weights were trained")
            .help("export the model file instead: --form llama-server or --form oci"));
    }
    Ok(names)
}

/// What becomes of the base's name in a note, and of what was measured.
fn adapter_notes(manifest: &ArtifactManifest) -> Vec<String> {
    let base = &manifest.base;
    vec![
        format!(
            "the base is {} (SHA-256 of its weights {}...); another base gives other answers",
            visible_line(&base.name),
            short(&base.digest)
        ),
        "what was evaluated is the merged, quantized file, not this adapter; evaluate again what you serve".to_owned(),
    ]
}

fn llama_adapter(dir: &Path, manifest: &ArtifactManifest, out: &Path) -> Result<Made> {
    let names = adapter_names(manifest)?;
    let Some(folder) = names.iter().find(|name| name.ends_with("adapter_config.json")).map(|name| dir.join(name))
    else {
        return Err(Failure::new(Exit::Unexpected, "the artifact's adapter has no adapter_config.json"));
    };
    let weights = Weights::open(&manifest.file(dir, "model")?)?;
    std::fs::create_dir_all(out).map_err(|e| cannot("make the folder", out, &e))?;
    let path = out.join(format!("{}-lora.gguf", manifest.name));
    write_adapter(folder.parent().unwrap_or(dir), weights.config(), &manifest.name, &path)?;
    let next = vec![format!("llama-server --model BASE.gguf --lora {} --jinja", shell(&path))];
    Ok(Made { files: vec![path], digest: None, next, notes: adapter_notes(manifest) })
}

fn peft(dir: &Path, manifest: &ArtifactManifest, out: &Path) -> Result<Made> {
    let names = adapter_names(manifest)?;
    let adapter = out.join("adapter");
    let mut files = Vec::new();
    for name in names.iter().chain(&with_role(manifest, "tokenizer")) {
        files.push(copy(dir, manifest, name, &adapter)?);
    }
    let next = vec![format!(
        "vllm serve BASE --enable-lora --max-lora-rank 64 --lora-modules {}={}",
        manifest.name,
        shell(&adapter)
    )];
    Ok(Made { files, digest: None, next, notes: adapter_notes(manifest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grammar_quotes_what_a_label_may_hold() {
        let labels = ["a".to_owned(), "say \"hi\"\\".to_owned()];
        assert_eq!(grammar(&labels), "root ::= \"a\" | \"say \\\"hi\\\"\\\\\"\n");
    }
}
