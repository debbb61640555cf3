//! Loops that the compiler vectorises, compiled for several widths and chosen at run time. A width changes no bit: every
//! loop fixes its order of additions, and nothing is fused.

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use std::sync::OnceLock;

    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Width {
        Base,
        Avx2,
        Avx512,
    }

    pub fn width() -> Width {
        static WIDTH: OnceLock<Width> = OnceLock::new();
        *WIDTH.get_or_init(|| {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                Width::Avx512
            } else if is_x86_feature_detected!("avx2") {
                Width::Avx2
            } else {
                Width::Base
            }
        })
    }
}

/// Defines a function whose body is compiled for each width, and `NAME_portable`, which is the body alone.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident / $portable:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        #[inline(always)]
        $vis fn $portable($($arg: $ty),*) $body

        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::encode::simd::x86::{Width, width};
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) {
                    $portable($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) {
                    $portable($($arg),*)
                }
                // SAFETY: `width` found the instructions on this processor.
                #[expect(unsafe_code, reason = "instructions behind run-time detection")]
                match width() {
                    Width::Avx512 => return unsafe { avx512($($arg),*) },
                    Width::Avx2 => return unsafe { avx2($($arg),*) },
                    Width::Base => {}
                }
            }
            $portable($($arg),*)
        }
    };
}
pub(crate) use vectorised;
