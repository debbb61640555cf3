//! What a registry relies on in a layout: every blob under its own digest, every descriptor true, each of the artifact's
//! files a layer with the digest that was signed.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use limbeck_artifact::digest::{sha256_file, sha256_hex};
use limbeck_artifact::manifest::ArtifactManifest;
use limbeck_artifact::oci::{About, write_layout};
use serde_json::Value;
use std::fs;
use std::path::Path;

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The blob that a descriptor names, checked against what it says.
fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let bytes = fs::read(layout.join("blobs/sha256").join(digest)).unwrap();
    assert_eq!(sha256_hex(&bytes), digest);
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

#[test]
fn a_layout_holds_every_file_as_a_layer_with_the_digest_that_was_signed() {
    let dir = tempfile::tempdir().unwrap();
    let (artifact, out) = (dir.path().join("a"), dir.path().join("oci"));
    common::artifact(&artifact, "quickstart", "1.2.3");
    let manifest = ArtifactManifest::load(&artifact).unwrap();
    let about = About { family: Some("llama".to_owned()), quantization: Some("Q8_0".to_owned()) };
    let made = write_layout(&artifact, &manifest, &about, "1.2.3", &out).unwrap();
    assert_eq!(read(&out.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let index = read(&out.join("index.json"));
    let image = &index["manifests"][0];
    assert_eq!(image["digest"], made.digest.as_str());
    assert_eq!(image["annotations"]["org.opencontainers.image.ref.name"], "1.2.3");
    let parsed: Value = serde_json::from_slice(&blob(&out, image)).unwrap();
    let layers = parsed["layers"].as_array().unwrap();
    let names: Vec<&str> =
        layers.iter().map(|l| l["annotations"]["org.cncf.model.filepath"].as_str().unwrap()).collect();
    assert_eq!(names, ["manifest.json", "model.gguf", "report/report.json", "model.sig"]);
    for layer in layers {
        let name = layer["annotations"]["org.cncf.model.filepath"].as_str().unwrap();
        let digest = sha256_file(&artifact.join(name)).unwrap();
        assert_eq!(layer["digest"], format!("sha256:{digest}"));
        assert_eq!(blob(&out, layer), fs::read(artifact.join(name)).unwrap());
    }
    assert_eq!(layers[1]["mediaType"], "application/vnd.cncf.model.weight.v1.raw");
    let config: Value = serde_json::from_slice(&blob(&out, &parsed["config"])).unwrap();
    assert_eq!(config["descriptor"]["name"], "quickstart");
    assert_eq!(config["modelfs"]["diffIds"].as_array().unwrap().len(), layers.len());
    // The signature refers to the image.
    let referrer: Value = serde_json::from_slice(&blob(&out, &index["manifests"][1])).unwrap();
    assert_eq!(referrer["subject"]["digest"], made.digest.as_str());
    assert_eq!(blob(&out, &referrer["layers"][0]), b"signature");
    blob(&out, &referrer["config"]);
    // Nothing else lies there (the report of this artifact is `{}`, as an empty configuration is), and the same again gives
    // the same.
    let blobs = fs::read_dir(out.join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs, layers.len() + 3);
    let again = write_layout(&artifact, &manifest, &about, "1.2.3", &dir.path().join("again")).unwrap();
    assert_eq!(again, made);
    assert!(write_layout(&artifact, &manifest, &about, "a/b", &dir.path().join("bad")).is_err());
}
