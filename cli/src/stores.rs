//! Where a store is: a folder, or `s3://BUCKET/PREFIX`, opened with what the environment says of keys and server. Every verb
//! that takes a store comes through here.

use crate::exit::{Exit, Failure, Result};
use crate::settings::{AgeIdentity, age_identity};
use limbeck_artifact::encryption::{Identities, Recipients};
use limbeck_artifact::store::Store;
use limbeck_recipes::Encrypt;
use std::path::Path;

/// The store of a project that names none.
pub const DEFAULT: &str = ".limbeck/store";
/// Who reads an encrypted store, where nobody is named.
pub const IDENTITY: &str = ".limbeck/keys/age.txt";
/// What a version of a bucket's store is laid out in.
#[cfg(feature = "object-store")]
const CACHE: &str = ".limbeck/cache";

/// Opens a store, and makes it where there is none.
///
/// # Errors
/// When it can't be read or made, or is in a bucket and this build can't.
pub fn open(at: &Path) -> Result<Store> {
    readable(bare(at)?, None)
}

/// As [`open`], encrypted for whom the recipe names, if it names somebody.
///
/// # Errors
/// As [`open`]; when the store is encrypted for others, or was begun without.
pub fn open_for(at: &Path, encrypt: &Encrypt) -> Result<Store> {
    let store = bare(at)?;
    let store = match recipients(encrypt)? {
        Some(recipients) => store.encrypted_for(&recipients)?,
        None => store,
    };
    readable(store, encrypt.identity.as_deref())
}

/// Whom a recipe encrypts for.
///
/// # Errors
/// When one is no recipient, which a recipe's check tells before.
pub fn recipients(encrypt: &Encrypt) -> Result<Option<Recipients>> {
    Recipients::parse(&encrypt.recipients).map_err(|why| Failure::new(Exit::RecipeInvalid, why))
}

/// Who reads: the environment's identity, the one that is named, or the one at its usual place; perhaps nobody.
///
/// # Errors
/// When one is named and can't be read, or others can read it too.
pub fn identities(named: Option<&Path>) -> Result<Identities> {
    let usual = Path::new(IDENTITY);
    let file = match (age_identity(), named) {
        (Some(AgeIdentity::Text(text)), _) => {
            return Identities::parse(&text, "LIMBECK_AGE_IDENTITY".to_owned()).map_err(|why| {
                Failure::new(Exit::Unexpected, format!("LIMBECK_AGE_IDENTITY: {why}"))
                    .help("it holds the secret key itself; LIMBECK_AGE_IDENTITY_FILE names a file of one")
            });
        }
        (Some(AgeIdentity::File(file)), _) => file,
        (None, Some(named)) => named.to_owned(),
        (None, None) if usual.exists() => usual.to_owned(),
        (None, None) => return Ok(Identities::none(format!("there is no age identity at {IDENTITY}"))),
    };
    Identities::load(&file).map_err(|e| {
        let lost = "name the file where it is now: LIMBECK_AGE_IDENTITY_FILE=FILE (if the key is lost, what is encrypted for it alone is \
                    lost too)";
        if file.exists() { e.into() } else { Failure::from(e).help(lost) }
    })
}

/// What to do about [`limbeck_artifact::Error::Locked`].
pub const LOCKED: &str = "name the file of a key that it is encrypted for: LIMBECK_AGE_IDENTITY_FILE=FILE (nothing else opens it: where \
     every such key is lost, the content is lost too)";

fn readable(store: Store, named: Option<&Path>) -> Result<Store> {
    if store.recipients().is_none() { Ok(store) } else { Ok(store.with_identities(identities(named)?)) }
}

fn bare(at: &Path) -> Result<Store> {
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
