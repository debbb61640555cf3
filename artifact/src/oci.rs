//! An artifact as an OCI image layout: a folder that any registry tool pushes as it is, with the CNCF ModelPack media
//! types. Every file is a layer of its own, unpacked, so that a layer's digest is the digest that was signed.
//!
//! Sources: OCI image layout and manifest specifications 1.1; modelpack/model-spec 0.0.7; sigstore bundle referrers.

use crate::digest::{canonical_json, sha256_file, sha256_hex};
use crate::files::write_atomic;
use crate::manifest::{self, ArtifactManifest};
use crate::oms;
use crate::store::HashedCopy;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const MODEL: &str = "application/vnd.cncf.model.manifest.v1+json";
const CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `sha256:` and the digest of the image's manifest: what a registry names it by.
    pub digest: String,
    pub tag: String,
    pub layers: usize,
    pub bytes: u64,
}

/// What only a reader of the weights knows, for those who browse a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// `llama`, `qwen3`.
    pub family: Option<String>,
    /// Such as `Q8_0`.
    pub quantization: Option<String>,
}

/// Writes the artifact in `dir` as a layout into `out`, which must not exist yet. The same artifact gives the same bytes.
///
/// # Errors
/// When the artifact can't be read, or the layout not be written.
pub fn write_layout(dir: &Path, artifact: &ArtifactManifest, about: &About, tag: &str, out: &Path) -> Result<Layout> {
    check_tag(tag)?;
    let blobs = out.join("blobs/sha256");
    let listing =
        oms::files(dir, None, &[]).map_err(|fault| fault.into_error(dir, "take it out, then export again"))?;
    let mut layers = Vec::new();
    for (name, path) in ordered(&listing) {
        let mut layer = copy_blob(path, &blobs)?;
        layer["mediaType"] = json!(media_type(name, artifact));
        layer["annotations"] = json!({"org.cncf.model.filepath": name});
        layers.push(layer);
    }
    let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = write_blob(&blobs, &config(artifact, about, &digests))?;
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "artifactType": MODEL,
        "config": with(config, "mediaType", json!(CONFIG)),
        "layers": layers,
        "annotations": {
            "org.opencontainers.image.title": artifact.name,
            "org.opencontainers.image.version": artifact.version,
            "org.opencontainers.image.created": artifact.created,
        },
    });
    if let Some(license) = &artifact.base.license {
        manifest["annotations"]["org.opencontainers.image.licenses"] = json!(license);
    }
    let image = write_blob(&blobs, &manifest)?;
    let subject = with(with(image, "mediaType", json!(IMAGE)), "artifactType", json!(MODEL));
    let referrer = referrer(&blobs, &subject, &listing)?;
    let tagged =
        |image: Value, tag: &str| with(image, "annotations", json!({"org.opencontainers.image.ref.name": tag}));
    let mut images = vec![tagged(subject.clone(), tag)];
    images.extend(referrer.map(|image| tagged(image, &format!("{tag}.sig"))));
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": images,
    });
    write(&out.join("oci-layout"), &json!({"imageLayoutVersion": "1.0.0"}))?;
    // Last: without an index there is nothing in a layout.
    write(&out.join("index.json"), &index)?;
    let bytes = layers_bytes(&manifest);
    let digest = subject["digest"].as_str().unwrap_or_default().to_owned();
    Ok(Layout { digest, tag: tag.to_owned(), layers: listing.len(), bytes })
}

/// The manifest first and the signature last, so that whoever pulls has them at known places.
fn ordered(listing: &BTreeMap<String, PathBuf>) -> Vec<(&str, &Path)> {
    let place = |name: &str| match name {
        manifest::FILE_NAME => 0,
        manifest::SIGNATURE_FILE_NAME => 2,
        _ => 1,
    };
    let mut all: Vec<(&str, &Path)> = listing.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect();
    all.sort_by_key(|(name, _)| place(name));
    all
}

fn media_type(name: &str, artifact: &ArtifactManifest) -> &'static str {
    let role = artifact.files.get(name).map_or("", |file| file.role.as_str());
    let is_weights = name.ends_with(".gguf") || name.ends_with(".safetensors");
    match role {
        _ if is_weights => "application/vnd.cncf.model.weight.v1.raw",
        "adapter" | "tokenizer" | "policy" => "application/vnd.cncf.model.weight.config.v1.raw",
        "recipe-lock" => "application/vnd.cncf.model.code.v1.raw",
        "lineage" => "application/vnd.cncf.model.dataset.v1.raw",
        _ => "application/vnd.cncf.model.doc.v1.raw",
    }
}

fn config(artifact: &ArtifactManifest, about: &About, digests: &[&Value]) -> Value {
    let mut descriptor = json!({
        "name": artifact.name,
        "version": artifact.version,
        "createdAt": artifact.created,
    });
    if let Some(family) = &about.family {
        descriptor["family"] = json!(family);
    }
    if let Some(license) = &artifact.base.license {
        descriptor["licenses"] = json!([license]);
    }
    let mut config = json!({"architecture": "transformer", "format": "gguf"});
    if let Some(quantization) = &about.quantization {
        config["quantization"] = json!(quantization.to_lowercase());
    }
    json!({"descriptor": descriptor, "config": config, "modelfs": {"type": "layers", "diffIds": digests}})
}

/// The signature once more, as what refers to the image: where registry tools look for one.
fn referrer(blobs: &Path, subject: &Value, listing: &BTreeMap<String, PathBuf>) -> Result<Option<Value>> {
    let Some(bundle) = listing.get(manifest::SIGNATURE_FILE_NAME) else { return Ok(None) };
    let empty = with(write_blob(blobs, &json!({}))?, "mediaType", json!(EMPTY));
    let layer = with(copy_blob(bundle, blobs)?, "mediaType", json!(BUNDLE));
    let image = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "artifactType": BUNDLE,
        "config": empty,
        "layers": [layer],
        "subject": {"mediaType": IMAGE, "digest": subject["digest"], "size": subject["size"]},
        "annotations": {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": "https://model_signing/signature/v1.0",
        },
    });
    Ok(Some(with(with(write_blob(blobs, &image)?, "mediaType", json!(IMAGE)), "artifactType", json!(BUNDLE))))
}

fn with(mut object: Value, key: &str, value: Value) -> Value {
    object[key] = value;
    object
}

fn layers_bytes(manifest: &Value) -> u64 {
    manifest["layers"].as_array().map_or(0, |layers| layers.iter().filter_map(|l| l["size"].as_u64()).sum())
}

fn write(path: &Path, value: &Value) -> Result<()> {
    write_atomic(path, canonical_json(value).as_bytes()).map_err(Error::io("write", path))
}

/// Its digest and size.
fn write_blob(blobs: &Path, value: &Value) -> Result<Value> {
    let text = canonical_json(value);
    let digest = sha256_hex(text.as_bytes());
    let path = blobs.join(&digest);
    write_atomic(&path, text.as_bytes()).map_err(Error::io("write", &path))?;
    Ok(json!({"digest": format!("sha256:{digest}"), "size": text.len()}))
}

/// Its digest and size.
fn copy_blob(source: &Path, blobs: &Path) -> Result<Value> {
    let digest = sha256_file(source).map_err(Error::io("read", source))?;
    let bytes = HashedCopy::of(source, &digest, &blobs.join(&digest))?.commit()?;
    Ok(json!({"digest": format!("sha256:{digest}"), "size": bytes}))
}

/// As the distribution specification has it.
fn check_tag(tag: &str) -> Result<()> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let is_tag = tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if is_tag {
        return Ok(());
    }
    let reason = format!("{:?} is no tag", crate::untrusted::visible_line(tag));
    Err(Error::refused(reason, "use up to 128 letters, digits, '_', '.' and '-'"))
}
