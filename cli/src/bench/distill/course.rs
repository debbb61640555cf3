//! The arms of the comparison: what a student may learn from, and how much of it a reviewer has decided.

/// What the student learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arm {
    /// The labelled rows.
    Labels,
    /// These, and the teacher's posteriors of all.
    Soft,
    /// The same, all labels told apart: of spelled labels the exact posterior, whatever it costs.
    SoftWhole,
    /// These, and the teacher's likeliest label of the others as if it were one.
    Hard,
    /// As soft, a share of the teacher's answers turned into wrong ones.
    NoisySoft,
    /// As hard, with the same wrong answers.
    NoisyHard,
    /// As noisy-hard, after so many decisions at the review queue's order.
    Reviewed,
    /// The same, the rows to decide drawn at random.
    ReviewedAtRandom,
}

/// An arm, and how much of what the teacher said was decided by a reviewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    pub arm: Arm,
    pub decisions: usize,
}

impl Course {
    pub fn of(arm: Arm) -> Course {
        Course { arm, decisions: 0 }
    }

    /// What an arm comes to: review comes once for each number of decisions.
    pub fn all(arm: Arm, decisions: &[usize]) -> Vec<Course> {
        match arm {
            Arm::Reviewed | Arm::ReviewedAtRandom => {
                decisions.iter().map(|decisions| Course { arm, decisions: *decisions }).collect()
            }
            _ => vec![Course::of(arm)],
        }
    }

    pub fn name(self) -> String {
        let n = self.decisions;
        match self.arm {
            Arm::Labels => "labels alone".to_owned(),
            Arm::Soft => "soft labels".to_owned(),
            Arm::SoftWhole => "soft labels, all apart".to_owned(),
            Arm::Hard => "hard labels".to_owned(),
            Arm::NoisySoft => "noisy soft labels".to_owned(),
            Arm::NoisyHard => "noisy hard labels".to_owned(),
            Arm::Reviewed => format!("noisy, {n} reviewed"),
            Arm::ReviewedAtRandom => format!("noisy, {n} at random"),
        }
    }

    pub fn is_noisy(self) -> bool {
        matches!(self.arm, Arm::NoisySoft | Arm::NoisyHard | Arm::Reviewed | Arm::ReviewedAtRandom)
    }

    /// Of the teacher's posterior, whose labels are told apart.
    pub fn exact_mass(self, asked: f64) -> f64 {
        if self.arm == Arm::SoftWhole { 1.0 } else { asked }
    }

    pub fn is_soft(self) -> bool {
        matches!(self.arm, Arm::Soft | Arm::SoftWhole | Arm::NoisySoft)
    }
}
