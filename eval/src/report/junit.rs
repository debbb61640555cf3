//! The gates as JUnit XML, for CI: a test case a gate. What fails is a failure; what is inconclusive is an error, since neither
//! pass nor skip would say that it was asked and not answered.

use super::Report;
use crate::gates::Verdict;
use limbeck_artifact::untrusted::visible_line;
use std::fmt::Write as _;

/// One suite named after the artifact. The same report gives the same bytes: no times, no host.
pub fn junit(report: &Report) -> String {
    let count = |verdict| report.gates.iter().filter(|gate| gate.verdict == verdict).count();
    let suite = xml(&format!("{} {}", report.name, report.version));
    let counts = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"0\"",
        report.gates.len(),
        count(Verdict::Fail),
        count(Verdict::Inconclusive)
    );
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"limbeck\" {counts}>\n  <testsuite name=\"{suite}\" {counts}>\n"
    );
    for gate in &report.gates {
        let _ = write!(out, "    <testcase classname=\"{suite}\" name=\"{}: {}\"", xml(&gate.gate), xml(&gate.demand));
        let element = match gate.verdict {
            Verdict::Pass => None,
            Verdict::Fail => Some("failure"),
            Verdict::Inconclusive => Some("error"),
        };
        match element {
            None => {
                let _ = writeln!(out, ">\n      <system-out>{}</system-out>\n    </testcase>", xml(&gate.reason));
            }
            Some(element) => {
                let _ = writeln!(
                    out,
                    ">\n      <{element} type=\"{}\" message=\"{}\"/>\n    </testcase>",
                    gate.verdict.name(),
                    xml(&gate.reason)
                );
            }
        }
    }
    out + "  </testsuite>\n</testsuites>\n"
}

/// Text from outside: one line, what is hidden made visible, and nothing that XML would act on. Characters that XML 1.0 cannot
/// hold are not among what is left.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible_line(text).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                out.push('\u{fffd}')
            }
            c => out.push(c),
        }
    }
    out
}
