//! Loops that the compiler vectorises, compiled for several widths and chosen at run time. A width changes no bit: each
//! loop fixes its order of additions, and multiply-adds are fused where the code says `mul_add`, nowhere else.

use std::sync::OnceLock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Base,
    Avx2,
    Avx512,
}

impl Width {
    /// Whether this processor has its instructions.
    pub fn available(self) -> bool {
        match self {
            Width::Base => true,
            #[cfg(target_arch = "x86_64")]
            Width::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Width::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Width::Avx2 | Width::Avx512 => false,
        }
    }
}

pub fn width() -> Width {
    static WIDTH: OnceLock<Width> = OnceLock::new();
    *WIDTH
        .get_or_init(|| [Width::Avx512, Width::Avx2].into_iter().find(|width| width.available()).unwrap_or(Width::Base))
}

/// Defines a function whose body is compiled for each width.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "leaf loops take their slices plainly")]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                // SAFETY: `width` found the instructions on this processor.
                #[expect(unsafe_code, reason = "instructions behind run-time detection")]
                match $crate::ops::flex::simd::width() {
                    $crate::ops::flex::simd::Width::Avx512 => return unsafe { avx512($($arg),*) },
                    $crate::ops::flex::simd::Width::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::ops::flex::simd::Width::Base => {}
                }
            }
            plain($($arg),*)
        }
    };
}
pub(crate) use vectorised;
