//! What the verbs about keys and encryption take.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct Keys {
    #[command(subcommand)]
    pub verb: KeysVerb,
}

#[derive(Args, Debug)]
pub struct Seal {
    /// The folder
    pub folder: PathBuf,
    /// Whom it is encrypted for (may be repeated): `limbeck keys recipient` prints one's own
    #[arg(long, value_name = "RECIPIENT", required = true)]
    pub to: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Unseal {
    /// The folder
    pub folder: PathBuf,
    /// The age identity that opens it; without, LIMBECK_AGE_IDENTITY_FILE or .limbeck/keys/age.txt
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub enum KeysVerb {
    /// Make a P-256 key; encrypted when LIMBECK_KEY_PASSPHRASE or LIMBECK_KEY_PASSPHRASE_FILE gives a passphrase
    #[command(after_help = "Example:\n  limbeck keys new .limbeck/keys/signing.pem")]
    New {
        /// Where the private key goes; the public one is put beside it
        path: PathBuf,
    },
    /// Make a key in place of another, and the next version of the trust policy that says so
    #[command(after_help = "\
Example:
  limbeck keys rotate ci.pem ci-2027.pem --policy trust.toml
  limbeck trust sign trust.toml --key ann.pem && limbeck trust install trust.toml

The old key stays valid for what was promoted before. If others may have had it, set its revoked_at_seq in the policy to the
entry from which it is not to be believed.")]
    Rotate {
        #[command(flatten)]
        store: crate::verbs::store::args::StoreArg,
        /// The key that is to be replaced, its private or public half
        old: PathBuf,
        /// Where the new private key goes; the public one is put beside it
        new: PathBuf,
        /// Where the next policy goes, where the store has one
        #[arg(long, value_name = "FILE", default_value = "trust.toml")]
        policy: PathBuf,
    },
    /// Say which key this is: its id, as artifacts and the promotion log name it
    #[command(after_help = "Example:\n  limbeck keys show .limbeck/keys/signing.pub.pem")]
    Show {
        /// A private or a public key
        path: PathBuf,
    },
    /// Make an age identity, for what is encrypted at rest; prints the recipient that a recipe names
    #[command(after_help = "\
Example:
  limbeck keys identity
  limbeck run recipes/quickstart --set 'encrypt.recipients=[\"age1...\"]'

The file is readable by you only, as age-keygen writes it. Keep a copy elsewhere: what is encrypted for it alone is lost with it.")]
    Identity {
        /// Where the identity goes
        #[arg(default_value = crate::stores::IDENTITY)]
        path: PathBuf,
    },
    /// Print the recipients of an age identity, which others may know
    #[command(after_help = "Example:\n  limbeck keys recipient .limbeck/keys/age.txt")]
    Recipient {
        /// The identity's file
        #[arg(default_value = crate::stores::IDENTITY)]
        path: PathBuf,
    },
    /// Print the public half
    #[command(after_help = "Example:\n  limbeck keys public .limbeck/keys/signing.pem")]
    Public {
        /// The private key
        path: PathBuf,
    },
}
