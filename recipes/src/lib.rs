//! What a run was asked: one TOML file, resolved against defaults and `--set` overrides into plain structs whose every
//! value keeps its origin. Mistakes are all reported at once, each with its place and what was probably meant.

mod arms;
mod error;
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
pub use kinds::SchemaFile;
pub use lock::is_locked;
pub use plan::settings;
pub use recipe::{
    ArmKind, Balance, BaseModel, CacheDtype, CalibrationMethod, Data, DecayType, Distill, Divergence, Dtype, Encrypt,
    EndpointApi, EndpointArm, Eval, EvalArithmetic, EvalArm, EvalJudge, Gate, GateRule, Head, Imatrix, JudgeKind,
    LossNormalization, LrScheduler, Method, Metric, MinReviewed, Model, PairwiseJudge, Promote, PromptStyle, Quantize,
    QuantizeBase, Ranking, Recipe, Review, Rounding, Sign, SliceBy, SplitName, SplitRatios, Task, Train, TrainOn,
    Trust, ValidMetric,
};
pub use resolve::{Entry, Origin, Resolved, load, load_text, locate};
pub use roles::{ROLES, Role, RoleFile};
pub use source::{Place, Source};
pub use template::{Asked, template};
