//! Where a GPU's time goes: every kernel that is launched while something runs, by its name. Measurements are kept unread until
//! it is over, so that kernels run back to back as they do unwatched.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a kernel took, all its launches together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelTime {
    pub launches: u64,
    pub seconds: f64,
    /// Launches that only the host's clock timed, waiting included.
    pub by_host: u64,
}

/// What `work` gives, and the kernels that it launched in this process; none in a build without a GPU's ops. Waits for the device.
pub fn watched<T>(work: impl FnOnce() -> T) -> (T, BTreeMap<String, KernelTime>) {
    #[cfg(feature = "cube")]
    return launches::watched(work);
    #[cfg(not(feature = "cube"))]
    (work(), BTreeMap::new())
}

#[cfg(feature = "cube")]
mod launches {
    use super::KernelTime;
    use cubecl::config::{TypeNameFormatLevel, type_name_format};
    use cubecl::logging::{Duration, LaunchObservation, LaunchObserver, ProfileDuration, TimingMethod, TimingRequest};
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex, PoisonError};

    #[derive(Default)]
    struct Kept {
        unread: Mutex<Vec<(&'static str, ProfileDuration)>>,
        read: Mutex<BTreeMap<String, KernelTime>>,
    }

    impl Kept {
        fn add(&self, kernel: &str, seconds: f64, method: TimingMethod) {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            let time = read.entry(type_name_format(kernel, TypeNameFormatLevel::Balanced)).or_default();
            time.launches += 1;
            time.seconds += seconds;
            time.by_host += u64::from(matches!(method, TimingMethod::System));
        }
    }

    impl LaunchObserver for Kept {
        fn launched(&self, _: &'static str) {}

        fn timing(&self) -> TimingRequest {
            TimingRequest::Deferred
        }

        fn profiled(&self, kernel: &'static str, profile: ProfileDuration) {
            self.unread.lock().unwrap_or_else(PoisonError::into_inner).push((kernel, profile));
        }

        fn timed(&self, kernel: &'static str, duration: Duration, method: TimingMethod) {
            self.add(kernel, duration.as_secs_f64(), method);
        }
    }

    pub fn watched<T>(work: impl FnOnce() -> T) -> (T, BTreeMap<String, KernelTime>) {
        let kept = Arc::new(Kept::default());
        let observation = LaunchObservation::new(kept.clone());
        let made = work();
        drop(observation);
        let unread = std::mem::take(&mut *kept.unread.lock().unwrap_or_else(PoisonError::into_inner));
        for (kernel, profile) in unread {
            let method = profile.timing_method();
            if let Some(ticks) = cubecl::future::block_on(profile.resolve()) {
                kept.add(kernel, ticks.duration().as_secs_f64(), method);
            }
        }
        let read = std::mem::take(&mut *kept.read.lock().unwrap_or_else(PoisonError::into_inner));
        (made, read)
    }
}
