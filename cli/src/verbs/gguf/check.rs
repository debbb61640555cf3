//! `limbeck gguf check`: what llama.cpp would refuse, before it is served.

use super::args::GgufCheck;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::Settings;
use limbeck_artifact::untrusted::visible_line;
use limbeck_quantize::check::{Level, check as look};
use serde_json::json;

pub fn check(settings: &Settings, args: &GgufCheck) -> Result<Exit> {
    if let Err(e) = std::fs::metadata(&args.file) {
        return Err(Failure::new(Exit::Usage, format!("failed to read {}: {e}", args.file.display())));
    }
    let sink = Sink::new(None, &Terminal::of_stderr());
    let found = look(&args.file, !args.header_only, &sink);
    sink.clear();
    let refused = found.iter().filter(|finding| finding.level == Level::Refused).count();
    if settings.json {
        output::json(&json!({"path": args.file, "loads": refused == 0, "findings": found}))?;
    } else {
        let mut text = String::new();
        for finding in &found {
            let level = match finding.level {
                Level::Refused => "refused",
                Level::Warning => "warning",
            };
            text += &format!("{level}: {}\n    {}\n", visible_line(&finding.what), finding.cure);
        }
        text += &match (refused, found.len()) {
            (0, 0) => format!("ok: {} is a file that llama.cpp loads, as far as this looks\n", args.file.display()),
            (0, n) => {
                format!("ok, with {n} {}: {}\n", if n == 1 { "warning" } else { "warnings" }, args.file.display())
            }
            (n, _) => format!(
                "llama.cpp would refuse {}, for {n} {}\n",
                args.file.display(),
                if n == 1 { "reason" } else { "reasons" }
            ),
        };
        output::stdout(&text)?;
    }
    Ok(if refused == 0 { Exit::Ok } else { Exit::VerificationFailed })
}
