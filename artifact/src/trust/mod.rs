//! Who may build, judge and promote. A policy names keys and roles and is signed by its root keys; an approval names a
//! version and a role, and is signed by a key that has it.
//!
//! Both are in-toto statements in the bundles that artifacts are signed with: the policy's names the policy file by its
//! digest, an approval is a Simple Verification Result (in-toto SVR v0.2). The rules are TUF's: versions count up by one,
//! the next one is signed by the root keys of both, and a key never vanishes, it is revoked. Nothing hangs on a clock: a key
//! is valid from one entry of the promotion log to another.

mod approval;
mod policy;
mod signed;

pub use approval::{Approval, step_of_channel};
pub use policy::{Role, TrustPolicy, TrustedKey};
pub use signed::SignedPolicy;

/// The role whose keys sign artifacts.
pub const BUILD: &str = "build";
/// The role that vouches for an artifact's gates.
pub const EVAL: &str = "eval";
/// The role that promotes to channels that have none of their own (`promote:CHANNEL`).
pub const PROMOTE: &str = "promote";
