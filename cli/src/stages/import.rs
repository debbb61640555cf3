//! Import: trace files into `import/`.

use super::{Finished, Run, Work, digests, named};
use crate::exit::{Failure, Result};
use crate::settings::recipe_arg;
use limbeck_artifact::event::Stage;
use limbeck_data_curation::import::MAX_LINE_BYTES;
use limbeck_data_curation::{ImportPlan, ImportSummary, import};

pub fn run(run: &Run<'_>) -> Result<Finished<ImportSummary>> {
    let recipe = run.recipe();
    let traces = named(&recipe.data.traces);
    if let Some(missing) = traces.iter().find(|f| !f.path.is_file()) {
        let message = format!("there are no traces at {}", missing.path.display());
        let help = format!(
            "put them there, or name others: --set 'data.traces=[\"…\"]' (see `limbeck explain {}`)",
            recipe_arg(&run.resolved)
        );
        return Err(Failure::new(crate::exit::Exit::Unexpected, message).help(help));
    }
    run.stage(Stage::Import, digests(&traces, false)?, |emit, _| {
        let out = run.folder(Stage::Import);
        let plan = ImportPlan { traces, redact: recipe.data.redact, max_line_bytes: MAX_LINE_BYTES, out };
        let summary = import(&plan, emit)?;
        let rejected: u64 = summary.rejected.values().sum();
        Ok(Work {
            line: format!("{} traces accepted, {rejected} rejected", summary.accepted),
            outputs: ["import/accepted.parquet", "import/rejected.jsonl", "import/import.json"]
                .map(String::from)
                .to_vec(),
            summary,
        })
    })
}
