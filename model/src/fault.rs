//! What a device answers in the place of numbers. Work on a GPU is queued, so what went wrong shows where something is read.

use burn::tensor::Tensor;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// The bytes that were asked for at last, where it says so.
    #[error("the device's memory is full")]
    OutOfMemory { asked: Option<u64> },
    #[error("the device failed: {0}")]
    Failed(String),
}

impl DeviceFault {
    /// From what a runtime says; its types don't tell what lies beneath.
    fn of(said: &str) -> DeviceFault {
        let lower = said.to_lowercase();
        let full = ["can't allocate", "out of memory", "out-of-memory", "outofmemory"];
        if !full.iter().any(|words| lower.contains(words)) {
            let mut lines = said.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("Caused by"));
            let first: Vec<&str> = lines.by_ref().take(4).collect();
            return DeviceFault::Failed(first.join("; "));
        }
        let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
        let asked = lower.split("size: ").skip(1).find_map(|rest| digits(rest).parse().ok());
        DeviceFault::OutOfMemory { asked }
    }
}

/// The values on the host.
///
/// # Errors
/// When the device could not compute them.
pub fn read<const D: usize>(t: &Tensor<D>) -> Result<Vec<f32>, DeviceFault> {
    let data = t.try_to_data().map_err(|e| DeviceFault::of(&format!("{e}\n{e:?}")))?;
    data.convert::<f32>().try_into_vec::<f32>().map_err(|e| DeviceFault::Failed(format!("{e:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_told_from_a_broken_one() {
        let full = "An error happened during execution\nCaused by:\n  The bytes were never written\nCaused by:\n  An IO error \
                    happened\nCaused by:\n  can't allocate buffer of size: 257359872\nNo backtrace available";
        assert_eq!(DeviceFault::of(full), DeviceFault::OutOfMemory { asked: Some(257_359_872) });
        let full = "An out-of-memory error happened during launch";
        assert_eq!(DeviceFault::of(full), DeviceFault::OutOfMemory { asked: None });
        let broken = "An error happened during execution\nCaused by:\n  A compilation error happened during launch";
        let DeviceFault::Failed(why) = DeviceFault::of(broken) else { panic!() };
        assert_eq!(why, "An error happened during execution; A compilation error happened during launch");
    }

    #[test]
    fn what_is_there_is_read() {
        let t = Tensor::<1>::from_data([1.5f32, -2.0], &burn::tensor::Device::flex());
        assert_eq!(read(&t), Ok(vec![1.5, -2.0]));
    }
}
