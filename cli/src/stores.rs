//! Where a store is: a folder, or `s3://BUCKET/PREFIX`, opened with what the environment says of keys and server. Every verb
//! that takes a store comes through here.

use crate::exit::{Exit, Failure, Result};
use limbeck_artifact::store::Store;
use std::path::Path;

/// The store of a project that names none.
pub const DEFAULT: &str = ".limbeck/store";
/// What a version of a bucket's store is laid out in.
#[cfg(feature = "object-store")]
const CACHE: &str = ".limbeck/cache";

/// Opens a store, and makes it where there is none.
///
/// # Errors
/// When it can't be read or made, or is in a bucket and this build can't.
pub fn open(at: &Path) -> Result<Store> {
    match address(at) {
        Some(address) => bucket(address),
        None => Ok(Store::open(at)?),
    }
}

/// As [`open`]; None where there is no store yet. A store is made by promoting, never by looking.
///
/// # Errors
/// As [`open`].
pub fn find(at: &Path) -> Result<Option<Store>> {
    let store = match address(at) {
        Some(_) => open(at)?,
        None if at.join("log").is_dir() => return open(at).map(Some),
        None => return Ok(None),
    };
    // A bucket has no folders: a store is there as soon as something was put into it.
    let is_there = store.head()?.seq > 0 || !store.versions()?.is_empty();
    Ok(is_there.then_some(store))
}

fn address(at: &Path) -> Option<&str> {
    at.to_str().filter(|text| text.starts_with("s3://"))
}

#[cfg(feature = "object-store")]
fn bucket(address: &str) -> Result<Store> {
    use limbeck_artifact::digest::sha256_hex;
    use limbeck_artifact::store::BucketAccess;
    let settings =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let access = BucketAccess::new(address, settings.filter(|(name, _)| name.starts_with("AWS_")))
        .map_err(|e| Failure::of(Exit::Usage, &e))?;
    // A cache a store: two of the same name on two servers are two.
    let id = sha256_hex(access.identity().as_bytes());
    let cache = Path::new(CACHE).join(format!("store-{}", &id[..16]));
    Ok(Store::open_bucket(&access, &cache)?)
}

#[cfg(not(feature = "object-store"))]
fn bucket(address: &str) -> Result<Store> {
    let message = format!("{address}: this build keeps stores in folders only");
    Err(Failure::new(Exit::Usage, message)
        .help("build it with `cargo build --release --features object-store`, or name a folder"))
}
