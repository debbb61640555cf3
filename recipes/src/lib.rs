//! What a run was asked: one TOML file, resolved against defaults and `--set` overrides into plain structs whose every
//! value keeps its origin. Mistakes are all reported at once, each with its place and what was probably meant.

mod arms;
mod error;
mod evaluation;
mod kinds;
mod lock;
mod plan;
mod read;
mod recipe;
mod resolve;
mod roles;
mod schema;
mod source;
mod teachers;
mod template;

pub use error::{RecipeError, RecipeErrors};
pub use evaluation::{
    ArmKind, CalibrationMethod, EndpointApi, EndpointArm, Eval, EvalArithmetic, EvalArm, EvalJudge, Gate, GateRule,
    JudgeKind, Metric, PairwiseJudge, PromptStyle, Ranking, SliceBy, SplitName,
};
pub use kinds::SchemaFile;
pub use lock::is_locked;
pub use plan::settings;
pub use recipe::{
    Balance, BaseModel, CacheDtype, Data, DecayType, Distill, Divergence, Dtype, Encrypt, Head, HiddenLoss, Imatrix,
    LossNormalization, LrScheduler, Method, MinReviewed, Model, OnPolicyDivergence, Promote, Quantize, QuantizeBase,
    Recipe, Review, Rounding, Sign, SplitRatios, Task, Train, TrainOn, Trust, ValidMetric,
};
pub use resolve::{Entry, Origin, Resolved, load, load_text, locate};
pub use roles::{ROLES, Role, RoleFile};
pub use source::{Place, Source};
pub use template::{Asked, template};
