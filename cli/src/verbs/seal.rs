//! `limbeck seal` and `limbeck unseal`: a folder's files, encrypted and decrypted by hand.

use crate::args::{Seal, Unseal};
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::sealing;
use crate::settings::Settings;
use limbeck_artifact::encryption::Recipients;
use serde_json::json;

pub fn seal(settings: &Settings, args: &Seal) -> Result<Exit> {
    let recipients = Recipients::parse(&args.to).map_err(|why| {
        Failure::new(Exit::Usage, why).help("`limbeck keys identity` makes a key and prints its recipient")
    })?;
    let Some(recipients) = recipients else {
        return Err(Failure::new(Exit::Usage, "for whom is it to be encrypted?").help("--to age1..."));
    };
    let files = sealing::by_hand(&args.folder, &recipients)?;
    match settings.json {
        true => output::json(&json!({"folder": args.folder, "encrypted": files, "recipients": recipients.names()}))?,
        false => {
            output::stdout(&format!("{} in {} encrypted for {recipients}\n", counted(files), args.folder.display()))?
        }
    }
    Ok(Exit::Ok)
}

pub fn unseal(settings: &Settings, args: &Unseal) -> Result<Exit> {
    let files = sealing::open_by_hand(&args.folder, args.identity.as_deref())?;
    match settings.json {
        true => output::json(&json!({"folder": args.folder, "decrypted": files}))?,
        false => output::stdout(&format!(
            "{} in {} decrypted, readable by you only\n",
            counted(files),
            args.folder.display()
        ))?,
    }
    Ok(Exit::Ok)
}

fn counted(files: u64) -> String {
    format!("{files} file{}", if files == 1 { "" } else { "s" })
}
