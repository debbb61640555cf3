//! Failures as a person reads them: what, where in the recipe, why, what to try. Legible without colour.

use crate::exit::Failure;
use crate::output::Terminal;
use limbeck_artifact::untrusted::visible;
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report};

/// The whole message, ending with a line break.
pub fn render(failure: &Failure, terminal: &Terminal) -> String {
    let mut out = String::new();
    match &failure.recipe {
        None => {
            let mut message = visible(&failure.message).into_owned();
            for cause in &failure.causes {
                message.push_str("\nbecause ");
                message.push_str(&visible(cause));
            }
            let mut diagnostic = MietteDiagnostic::new(message).with_code(failure.exit.name());
            if let Some(help) = &failure.help {
                diagnostic = diagnostic.with_help(visible(help).into_owned());
            }
            draw(&mut out, &Report::new(diagnostic), terminal);
        }
        Some(errors) => {
            for error in &errors.errors {
                let mut diagnostic =
                    MietteDiagnostic::new(visible(&error.message).into_owned()).with_code(failure.exit.name());
                if let Some(hint) = &error.hint {
                    diagnostic = diagnostic.with_help(visible(hint).into_owned());
                }
                let report = match &error.place {
                    None => Report::new(diagnostic),
                    Some(place) => {
                        let label = LabeledSpan::at(place.span.clone(), "here");
                        let source = NamedSource::new(&*place.source.name, visible(&place.source.text).into_owned());
                        // Escapes move what follows them; then the plain text tells the place.
                        match visible(&place.source.text) {
                            std::borrow::Cow::Borrowed(_) => {
                                Report::new(diagnostic.with_label(label)).with_source_code(source)
                            }
                            std::borrow::Cow::Owned(_) => {
                                let (line, column) = place.line_column();
                                let message = format!("{}:{line}:{column}: {}", place.source.name, diagnostic.message);
                                Report::new(MietteDiagnostic { message, ..diagnostic })
                            }
                        }
                    }
                };
                draw(&mut out, &report, terminal);
            }
        }
    }
    out
}

fn draw(out: &mut String, report: &Report, terminal: &Terminal) {
    let mut theme = match (terminal.colour, terminal.live) {
        (true, _) => GraphicalTheme::unicode(),
        (false, true) => GraphicalTheme::unicode_nocolor(),
        // A log file or a pipe: ASCII survives every viewer.
        (false, false) => GraphicalTheme::none(),
    };
    theme.characters.error = "error:".into();
    let handler = GraphicalReportHandler::new_themed(theme).with_width(usize::from(terminal.width)).with_links(false);
    if handler.render_report(out, report.as_ref()).is_err() {
        out.push_str(&report.to_string());
    }
    out.push('\n');
}

/// The same for machines.
pub fn json(failure: &Failure) -> serde_json::Value {
    let mistakes = failure.recipe.as_ref().map(|errors| {
        let mistake = |e: &limbeck_recipes::RecipeError| {
            let place = e.place.as_ref().map(|p| {
                let (line, column) = p.line_column();
                serde_json::json!({"file": &*p.source.name, "line": line, "column": column})
            });
            serde_json::json!({"message": e.message, "place": place, "hint": e.hint})
        };
        errors.errors.iter().map(mistake).collect::<Vec<_>>()
    });
    serde_json::json!({
        "exit_code": failure.exit.code(),
        "error": failure.exit.name(),
        "message": failure.message,
        "causes": failure.causes,
        "help": failure.help,
        "mistakes": mistakes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    const PIPE: Terminal = Terminal { live: false, colour: false, width: 100 };

    #[test]
    fn recipe_mistakes_are_shown_in_their_place() {
        let text = "name = \"x\"\n\n[train]\nlerning_rate = 1e-3\nr = 0\n";
        let errors = limbeck_recipes::load_text("recipe.toml".as_ref(), text, &[]).unwrap_err();
        insta::assert_snapshot!("recipe-mistakes", render(&Failure::recipe(errors), &PIPE));
    }

    #[test]
    fn a_failure_says_why_and_what_to_try_and_hides_nothing() {
        let mut failure =
            Failure::new(Exit::ReviewIncomplete, "the review is not finished\u{1b}[2J").help("limbeck review x");
        failure.causes.push("nobody reviewed".to_owned());
        let shown = render(&failure, &PIPE);
        insta::assert_snapshot!("failure", shown);
        assert!(!shown.contains('\u{1b}'));
        assert_eq!(json(&failure)["exit_code"], 5);
    }
}
