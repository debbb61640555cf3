//! The arms beside each other: accuracies over the seeds, what one gains over another row by row, as JSON and as text.

use super::steps::StepCost;
use super::{Answered, Arm, Course, Work};
use crate::bench::banking::Rows;
use limbeck_eval::statistics::{Paired, mcnemar_exact};
use limbeck_trainer::HeadKind;
use serde_json::json;
use std::collections::BTreeMap;

/// One arm against another, row by row: points between them and the exact test's p.
fn paired(a: &Answered, b: &Answered) -> (f64, f64) {
    let only = |x: &Answered, y: &Answered| x.right.iter().zip(&y.right).filter(|(x, y)| **x && !**y).count() as u64;
    let pair = Paired { n: a.right.len() as u64, b: only(a, b), c: only(b, a) };
    ((a.accuracy() - b.accuracy()) * 100.0, mcnemar_exact(pair))
}

/// What was asked for, in its order.
fn courses(work: &Work<'_>) -> Vec<Course> {
    work.args.arms.iter().flat_map(|arm| Course::all(*arm, &work.args.decisions)).collect()
}

/// Which arms are held against each other: what a teacher gives, what its errors cost, what review gives back.
fn pairs(courses: &[Course]) -> Vec<(Course, Course)> {
    let against = |course: &Course| -> Vec<Course> {
        let others = match course.arm {
            Arm::Labels => Vec::new(),
            Arm::Soft => vec![Arm::Labels, Arm::Hard, Arm::SoftWhole],
            Arm::SoftWhole => vec![Arm::Labels, Arm::Hard],
            Arm::Hard => vec![Arm::Labels],
            Arm::NoisySoft => vec![Arm::Soft, Arm::NoisyHard],
            Arm::NoisyHard => vec![Arm::Hard],
            Arm::Reviewed | Arm::ReviewedAtRandom => vec![Arm::NoisyHard, Arm::Hard],
        };
        let at_random = (course.arm == Arm::Reviewed).then_some(Course { arm: Arm::ReviewedAtRandom, ..*course });
        others.into_iter().map(Course::of).chain(at_random).collect()
    };
    let of = |course: &Course| against(course).into_iter().map(|other| (*course, other)).collect::<Vec<_>>();
    courses.iter().flat_map(of).filter(|(_, other)| courses.contains(other)).collect()
}

/// Mean and standard deviation over the seeds.
fn spread(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (mean, if values.len() > 1 { (square / (n - 1.0)).sqrt() } else { 0.0 })
}

/// What each arm of a seed answered.
pub type Seeds = [BTreeMap<String, Answered>];

fn of_arm(seeds: &Seeds, course: Course, value: impl Fn(&Answered) -> f64) -> Vec<f64> {
    seeds.iter().filter_map(|seed| seed.get(&course.name())).map(value).collect()
}

/// Of each seed, two counts of one thing.
fn counts(seeds: &Seeds, course: Course, of: impl Fn(&Answered) -> Option<[u64; 2]>) -> Vec<[u64; 2]> {
    seeds.iter().filter_map(|seed| of(seed.get(&course.name())?)).collect()
}

fn gaps(seeds: &Seeds, (a, b): (Course, Course)) -> Vec<(f64, f64)> {
    seeds.iter().filter_map(|seed| Some(paired(seed.get(&a.name())?, seed.get(&b.name())?))).collect()
}

pub fn report(
    work: &Work<'_>,
    rows: &Rows,
    teacher: &Answered,
    seeds: &Seeds,
    costs: &[StepCost],
) -> serde_json::Value {
    let courses = courses(work);
    let arms: serde_json::Map<String, serde_json::Value> = courses
        .iter()
        .map(|arm| {
            let (accuracy, nll) = (of_arm(seeds, *arm, Answered::accuracy), of_arm(seeds, *arm, |a| a.nll));
            let (inherited, found) = (counts(seeds, *arm, |a| a.inherited), counts(seeds, *arm, |a| a.found));
            (
                arm.name(),
                json!({"accuracy": accuracy, "nll": nll, "wrong_answers_repeated": inherited,
                "wrong_answers_found": found}),
            )
        })
        .collect();
    let pairs: Vec<serde_json::Value> = pairs(&courses)
        .into_iter()
        .map(|pair| {
            let found = gaps(seeds, pair);
            let points: Vec<f64> = found.iter().map(|g| g.0).collect();
            let (mean, sd) = spread(&points);
            json!({"of": pair.0.name(), "over": pair.1.name(), "points": points, "mean": mean, "sd": sd,
                "mcnemar_p": found.iter().map(|g| g.1).collect::<Vec<f64>>()})
        })
        .collect();
    json!({
        "teacher": work.teacher.named(), "teacher_accuracy": teacher.accuracy(), "teacher_nll": teacher.nll,
        "student": work.args.student, "per_class": work.args.per_class, "unlabeled": work.args.unlabeled,
        "test_rows": rows.test.len(), "seeds": seeds.len(), "lambda": work.args.lambda,
        "temperature": work.args.temperature, "noise": work.args.noise, "arms": arms, "paired": pairs,
        "head": work.args.head.kind(), "exact_mass": work.args.exact_mass, "steps": costs,
    })
}

pub fn text_of(work: &Work<'_>, rows: &Rows, teacher: &Answered, seeds: &Seeds, costs: &[StepCost]) -> String {
    let mut out = format!(
        "teacher {}: {:.2} % right on {} test rows, NLL {:.3}\nstudent {}, {} labelled rows a class, {} unlabeled, {} seeds\n\n",
        work.teacher.named().name,
        teacher.accuracy() * 100.0,
        rows.test.len(),
        teacher.nll,
        work.args.student.display(),
        work.args.per_class,
        work.args.unlabeled,
        seeds.len(),
    );
    let courses = courses(work);
    let width = courses.iter().map(|c| c.name().len()).max().unwrap_or(0);
    for arm in courses.iter().copied() {
        let accuracy: Vec<f64> = of_arm(seeds, arm, |a| a.accuracy() * 100.0);
        if accuracy.is_empty() {
            continue;
        }
        let ((mean, sd), (nll, _)) = (spread(&accuracy), spread(&of_arm(seeds, arm, |a| a.nll)));
        let each: Vec<String> = accuracy.iter().map(|a| format!("{a:.2}")).collect();
        out.push_str(&format!(
            "  {:<width$} {mean:6.2} % ± {sd:.2}   NLL {nll:.3}   ({})",
            arm.name(),
            each.join(", ")
        ));
        for (what, found) in [
            ("wrong answers repeated", counts(seeds, arm, |a| a.inherited)),
            ("found in review", counts(seeds, arm, |a| a.found)),
        ] {
            if let Some([_, of]) = found.first() {
                let each: Vec<String> = found.iter().map(|[n, _]| n.to_string()).collect();
                out.push_str(&format!("   {what}: {} of {of}", each.join(", ")));
            }
        }
        out.push('\n');
    }
    out.push('\n');
    for pair in pairs(&courses) {
        let found = gaps(seeds, pair);
        if found.is_empty() {
            continue;
        }
        let (mean, sd) = spread(&found.iter().map(|g| g.0).collect::<Vec<f64>>());
        let each: Vec<String> = found.iter().map(|(points, p)| format!("{points:+.2}, p {p:.1e}")).collect();
        let what = format!("{} over {}", pair.0.name(), pair.1.name());
        out.push_str(&format!("  {what:<48} {mean:+.2} points ± {sd:.2}   ({})\n", each.join("; ")));
    }
    out.push_str("\n  a step with a teacher's answers over a plain one\n");
    for StepCost { head, exact_mass, ratio, tokens: [plain, taught] } in costs {
        let how = match (*head, *exact_mass < 1.0) {
            (HeadKind::Classification, _) => "classification head".to_owned(),
            (_, true) => format!("spelled labels, {exact_mass} of the posterior told apart"),
            (_, false) => "spelled labels, all told apart".to_owned(),
        };
        out.push_str(&format!("    {how:<52} {ratio:.2}   ({taught:.1} tokens a row for {plain:.1})\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_are_compared_row_by_row() {
        let of = |right: &[bool]| Answered { right: right.to_vec(), ..Answered::none() };
        let (a, b) = (of(&[true, true, true, false]), of(&[true, false, false, false]));
        let (points, p) = paired(&a, &b);
        assert!(points == 50.0 && (p - 0.5).abs() < 1e-9, "{points} {p}");
        assert_eq!(spread(&[1.0, 3.0]), (2.0, 2f64.sqrt()));
    }

    #[test]
    fn review_is_held_against_no_review_and_chance() {
        let arms = [Arm::Hard, Arm::NoisyHard, Arm::Reviewed, Arm::ReviewedAtRandom];
        let courses: Vec<Course> = arms.iter().flat_map(|arm| Course::all(*arm, &[100, 300])).collect();
        let told: Vec<String> =
            pairs(&courses).iter().map(|(a, b)| format!("{} over {}", a.name(), b.name())).collect();
        assert!(told.contains(&"noisy hard labels over hard labels".to_owned()), "{told:?}");
        assert!(told.contains(&"noisy, 300 reviewed over noisy, 300 at random".to_owned()), "{told:?}");
        assert!(!told.iter().any(|pair| pair.contains("100 reviewed over noisy, 300")), "{told:?}");
        assert_eq!(told.len(), 1 + 2 * 3 + 2 * 2);
    }
}
