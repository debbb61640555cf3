//! `limbeck completions`: a script for the shell, made from the definition of the arguments.

use crate::args::{Cli, Completions};
use crate::exit::{Exit, Result};
use crate::output;
use clap::CommandFactory;

pub fn completions(args: &Completions) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "limbeck", &mut script);
    output::stdout(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
