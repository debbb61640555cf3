//! Where the arithmetic runs, chosen at run time by name. A device that this build or machine lacks is an error that says
//! which feature or driver is missing, never a silent fall-back.

#[cfg(feature = "cube")]
use crate::ops::cube::{Compute as GpuCompute, CubeOps};
use crate::ops::flex::{Compute, FlexOps, bf16::Engine};
use crate::ops::{Ops, stock::StockOps};
use burn::tensor::Device;
use std::str::FromStr;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// Our own kernels on burn's Flex backend.
    Cpu,
    /// Plain burn ops on the Flex backend: slow, the reference.
    CpuReference,
    /// Vulkan, Metal or DirectX through wgpu.
    Wgpu,
    Cuda(usize),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    #[error("unknown device `{0}`; known are cpu, cpu-reference, wgpu, cuda, cuda:N")]
    Unknown(String),
    #[error(
        "device `{name}` is not in this build; build with `cargo build --release --features {feature}`, or use --device cpu"
    )]
    NotBuilt { name: String, feature: &'static str },
    #[error(
        "device `{0}` did not start: no such hardware here, or its driver is missing; `limbeck doctor` shows what is, and --device cpu always works"
    )]
    NotThere(String),
    #[error("device `{0}` has no bfloat16; leave train.dtype at \"auto\" or set it to \"fp32\"")]
    NoBf16(String),
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "cpu" | "flex" => Ok(DeviceName::Cpu),
            "cpu-reference" => Ok(DeviceName::CpuReference),
            "wgpu" => Ok(DeviceName::Wgpu),
            "cuda" => Ok(DeviceName::Cuda(0)),
            other => match other.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Ok(DeviceName::Cuda(index)),
                _ => Err(DeviceError::Unknown(other.to_string())),
            },
        }
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceName::Cpu => write!(f, "cpu"),
            DeviceName::CpuReference => write!(f, "cpu-reference"),
            DeviceName::Wgpu => write!(f, "wgpu"),
            DeviceName::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// What the matrix products of training compute in; names as in torchtune.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 where the processor multiplies it faster than float32, float32 elsewhere.
    #[default]
    Auto,
    Bf16,
    Fp32,
}

/// The op set that trains on the device. On a GPU without bfloat16 `auto` is float32.
///
/// # Errors
/// As [`ops`], and where bfloat16 is asked of a GPU that has none.
pub fn training_ops(device: DeviceName, dtype: Dtype) -> Result<Arc<dyn Ops>, DeviceError> {
    match device {
        DeviceName::Cpu => Ok(Arc::new(FlexOps::new(match dtype {
            Dtype::Fp32 => Compute::F32,
            Dtype::Bf16 => Compute::Bf16(Engine::best()),
            Dtype::Auto if Engine::pays() => Compute::Bf16(Engine::best()),
            Dtype::Auto => Compute::F32,
        }))),
        DeviceName::CpuReference => ops(device),
        DeviceName::Wgpu | DeviceName::Cuda(_) => gpu_ops(device, dtype),
    }
}

/// The op set that runs on the device, in float32.
///
/// # Errors
/// When the device is not in this build.
pub fn ops(device: DeviceName) -> Result<Arc<dyn Ops>, DeviceError> {
    match device {
        DeviceName::Cpu => Ok(Arc::new(FlexOps::default())),
        DeviceName::CpuReference => Ok(Arc::new(StockOps::new(Device::flex()))),
        DeviceName::Wgpu | DeviceName::Cuda(_) => gpu_ops(device, Dtype::Fp32),
    }
}

fn gpu_ops(name: DeviceName, dtype: Dtype) -> Result<Arc<dyn Ops>, DeviceError> {
    #[cfg(feature = "cuda")]
    keep_kernels();
    #[cfg(feature = "cube")]
    let on = |device: Device| -> Result<Arc<dyn Ops>, DeviceError> {
        let has_bf16 = dtype != Dtype::Fp32 && GpuCompute::Bf16.is_on(&device);
        let compute = match dtype {
            Dtype::Bf16 if !has_bf16 => return Err(DeviceError::NoBf16(name.to_string())),
            Dtype::Bf16 | Dtype::Auto if has_bf16 => GpuCompute::Bf16,
            _ => GpuCompute::F32,
        };
        Ok(Arc::new(CubeOps::new(device, compute)))
    };
    let _ = dtype;
    let missing = |feature| Err(DeviceError::NotBuilt { name: name.to_string(), feature });
    match name {
        #[cfg(feature = "wgpu")]
        DeviceName::Wgpu => on(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        DeviceName::Cuda(index) => on(Device::cuda(index)),
        DeviceName::Cuda(_) => missing("cuda"),
        _ => missing("wgpu"),
    }
}

/// Has compiled and tuned kernels kept from one run to the next, in the user's cache (~/.cache/cubecl), unless a cubecl.toml says
/// otherwise. By itself CubeCL keeps what it tuned in the folder of a Cargo project, if it is run in one, and compiles anew.
#[cfg(feature = "cuda")]
fn keep_kernels() {
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    if matches!(config.environment.path, CacheConfig::Target) {
        config.environment.path = CacheConfig::Global;
    }
    // It stays as it is where it was read before.
    CubeClRuntimeConfig::try_set(config);
}

/// The op set that answers on the device, in float32: on the CPU what is written, and the posterior over labels, has the same
/// bits whatever is answered beside it. It has no backward pass.
///
/// # Errors
/// As [`ops`].
pub fn writing_ops(device: DeviceName) -> Result<Arc<dyn Ops>, DeviceError> {
    match device {
        DeviceName::Cpu => Ok(Arc::new(FlexOps::new(Compute::Strips))),
        other => ops(other),
    }
}

/// Runs the smallest thing that needs the device: a name in the build says nothing about the hardware.
///
/// # Errors
/// When the device is not in this build, or does not start.
pub fn probe(device: DeviceName) -> Result<(), DeviceError> {
    // A driver that is not there makes the backend panic; that is an answer here, not a fault to print.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let tried = std::panic::catch_unwind(|| {
        let one = burn::tensor::Tensor::<1>::from_data([1.0f32], &ops(device)?.device());
        let two = (one.clone() + one).into_data().convert::<f32>().try_into_vec::<f32>();
        Ok::<bool, DeviceError>(two.is_ok_and(|two| two == [2.0]))
    });
    std::panic::set_hook(hook);
    match tried {
        Ok(Ok(true)) => Ok(()),
        Ok(Err(e)) => Err(e),
        Ok(Ok(false)) | Err(_) => Err(DeviceError::NotThere(device.to_string())),
    }
}

/// The names of the devices that this build knows.
pub fn built() -> Vec<&'static str> {
    let mut names = vec!["cpu", "cpu-reference"];
    if cfg!(feature = "wgpu") {
        names.push("wgpu");
    }
    if cfg!(feature = "cuda") {
        names.push("cuda");
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_answers_and_what_is_not_built_says_so() {
        assert_eq!(probe(DeviceName::Cpu), Ok(()));
        assert_eq!(probe(DeviceName::CpuReference), Ok(()));
        #[cfg(not(feature = "cuda"))]
        assert!(matches!(probe(DeviceName::Cuda(0)), Err(DeviceError::NotBuilt { .. })));
    }

    #[test]
    fn names_round_trip_and_nonsense_is_refused() {
        for name in ["cpu", "cpu-reference", "wgpu", "cuda:3"] {
            assert_eq!(name.parse::<DeviceName>().map(|d| d.to_string()), Ok(name.to_string()));
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        assert!("cuda:x".parse::<DeviceName>().is_err());
        assert!("tpu".parse::<DeviceName>().is_err());
    }
}
