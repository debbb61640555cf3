//! Signs and checks a directory from the command line, for tests/conformance/oms.sh.
//!
//! ```text
//! oms keygen KEY PUBLIC_KEY [PASSPHRASE]
//! oms sign DIR BUNDLE KEY [PASSPHRASE]
//! oms verify DIR BUNDLE PUBLIC_KEY [--allow-git]
//! ```
//! Exit code 0: done; 6: not what was signed; 1: anything else.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for a test script")]

use limbeck_artifact::oms::{Strictness, sign_dir, verify_dir};
use limbeck_artifact::{Error, keys};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["keygen", key, public, rest @ ..] => report(keygen(key, public, rest.first().copied())),
        ["sign", dir, bundle, key, rest @ ..] => report(sign(dir, bundle, key, rest.first().copied())),
        ["verify", dir, bundle, public, rest @ ..] => verify(dir, bundle, public, rest == ["--allow-git"]),
        _ => {
            eprintln!("usage: oms keygen|sign|verify ...");
            ExitCode::from(2)
        }
    }
}

fn keygen(key: &str, public: &str, passphrase: Option<&str>) -> Result<String, Error> {
    let signing = keys::generate()?;
    keys::save_private(Path::new(key), &signing, passphrase)?;
    keys::save_public(Path::new(public), signing.verifying_key())?;
    Ok(keys::key_id(signing.verifying_key()))
}

fn sign(dir: &str, bundle: &str, key: &str, passphrase: Option<&str>) -> Result<String, Error> {
    let key = keys::load_private(Path::new(key), passphrase)?;
    Ok(sign_dir(Path::new(dir), Path::new(bundle), &key)?.root)
}

fn verify(dir: &str, bundle: &str, public: &str, is_git_allowed: bool) -> ExitCode {
    let key = match keys::load_public(Path::new(public)) {
        Ok(key) => key,
        Err(e) => return report(Err(e)),
    };
    let strictness = if is_git_allowed { Strictness::AllowGit } else { Strictness::Strict };
    match verify_dir(Path::new(dir), Path::new(bundle), &key, strictness) {
        Ok(verified) => report(Ok(verified.root)),
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(6)
        }
    }
}

fn report(result: Result<String, Error>) -> ExitCode {
    match result {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
