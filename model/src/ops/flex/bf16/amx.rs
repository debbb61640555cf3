//! The product on Intel's matrix tiles: 32 rows by 32 columns of sums stay in four tile registers while left and right
//! tiles stream by. Linux grants a process the tile state once, on request.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::TILE;
use super::{Block, Left, RightPart};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use native::{available, configured, strip};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) fn available() -> bool {
    false
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) fn configured(_: impl FnOnce()) {
    unreachable!("this machine has no AMX")
}

/// # Safety
/// Never called where [`available`] is false.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[expect(unsafe_code, reason = "the same signature as on the processors that have it")]
pub(super) unsafe fn strip(_: *mut f32, _: bool, _: &[(&Left, RightPart)], _: usize, _: usize, _: &Block) {
    unreachable!("this machine has no AMX")
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[expect(unsafe_code, reason = "tile instructions exist only as assembly")]
mod native {
    use super::super::Line;
    use super::{Block, Left, RightPart, TILE};
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    /// AMX-BF16 in the processor, tile state enabled by the system and granted to this process.
    pub fn available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            if __cpuid(0).eax < 7 || !is_x86_feature_detected!("xsave") {
                return false;
            }
            // CPUID.7.0:EDX bits 22 (AMX-BF16) and 24 (AMX-TILE); XCR0 bits 17 and 18 hold the tile state.
            let leaf = __cpuid_count(7, 0).edx;
            let tiles = 3 << 17;
            // SAFETY: xsave was detected, and CPUID.1:ECX bit 27 says that xgetbv may be executed.
            let enabled = __cpuid(1).ecx & (1 << 27) != 0 && unsafe { xcr0() } & tiles == tiles;
            leaf & (1 << 22) != 0 && leaf & (1 << 24) != 0 && enabled && granted()
        })
    }

    /// # Safety
    /// The processor has xgetbv.
    #[target_feature(enable = "xsave")]
    unsafe fn xcr0() -> u64 {
        // SAFETY: as promised by the caller; register 0 always exists.
        unsafe { _xgetbv(0) }
    }

    /// Asks Linux for the tile state: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    fn granted() -> bool {
        let answer: i64;
        // SAFETY: the system call takes two numbers and touches no memory; rcx and r11 are what `syscall` overwrites.
        unsafe {
            asm!("syscall", inout("rax") 158i64 => answer, in("rdi") 0x1023u64, in("rsi") 18u64,
                out("rcx") _, out("r11") _, options(nostack));
        }
        answer == 0
    }

    /// Palette 1, eight tiles of 16 rows by 64 bytes.
    #[repr(C, align(64))]
    struct Config([u8; 64]);

    const CONFIG: Config = {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = 16;
            tile += 1;
        }
        Config(bytes)
    };

    /// Runs `work` with the tiles configured for [`strip`].
    pub fn configured(work: impl FnOnce()) {
        assert!(available());
        // SAFETY: `available` says that the instructions exist and are allowed; the configuration is 64 valid bytes. The
        // compiler never touches tile registers, and released tiles cost the system nothing when it switches threads.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) };
        work();
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// Sums of up to 32 columns, row-major in `sums`, 32 apart; added to what is there when `begun`.
    ///
    /// # Safety
    /// Inside [`configured`]. `sums` has room for the block's rows, rounded up to 32, is aligned to 64 bytes, and nobody
    /// else touches it; the rows and columns from `row` and `col` on exist in every term.
    pub unsafe fn strip(
        sums: *mut f32,
        mut begun: bool,
        terms: &[(&Left, RightPart)],
        row: usize,
        col: usize,
        block: &Block,
    ) {
        let total: usize = terms.iter().map(|(left, _)| left.depth_tiles()).sum();
        let most = total.div_ceil(total.div_ceil(CHUNK).max(1));
        let mut parts = Vec::with_capacity(terms.len());
        let mut room = most;
        for (left, right) in terms {
            let mut from = 0;
            while from < left.depth_tiles() {
                let tiles = room.min(left.depth_tiles() - from);
                parts.push(Part { left, right, from, tiles });
                (from, room) = (from + tiles, room - tiles);
                if room == 0 {
                    // SAFETY: as promised by the caller.
                    unsafe { corners(sums, begun, &parts, row, col, block) };
                    (begun, room) = (true, most);
                    parts.clear();
                }
            }
        }
        if !parts.is_empty() || !begun {
            // SAFETY: as promised by the caller; without any part the sums become zeros.
            unsafe { corners(sums, begun, &parts, row, col, block) };
        }
    }

    /// Adds a chunk to the sums of a strip, or begins with it.
    ///
    /// # Safety
    /// As [`strip`]; every part has tiles.
    unsafe fn corners(sums: *mut f32, add: bool, parts: &[Part], row: usize, col: usize, block: &Block) {
        for i in (0..block.rows).step_by(2 * TILE) {
            let two = [block.rows - i > TILE, block.cols > TILE];
            // SAFETY: as promised by the caller.
            unsafe { corner(sums.add(i * 2 * TILE), add, parts, [row + i, col], two) };
        }
    }

    /// Depth tiles that are multiplied before the next rows come, from one term or several: two panels of them stay in L1
    /// (24 KiB) beside the left tiles that stream by, and the sums are not loaded and stored too often.
    const CHUNK: usize = 12;

    struct Part<'a> {
        left: &'a Left,
        right: &'a RightPart<'a>,
        from: usize,
        tiles: usize,
    }

    /// Adds a chunk to 32 × 32 sums, or begins with it.
    ///
    /// # Safety
    /// The tiles are configured; `at` leads to 32 rows of 32 values; `row` and `col` exist in the operands; `two` says
    /// whether tiles 16 rows and 16 columns further do. Every part has tiles.
    unsafe fn corner(at: *mut f32, add: bool, parts: &[Part], [row, col]: [usize; 2], two: [bool; 2]) {
        // SAFETY: as promised by the caller; sums of tiles that do not exist are neither loaded nor stored.
        unsafe {
            let (line, below) = (2 * TILE * 4, at.add(TILE * 2 * TILE));
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack, nomem));
            if add {
                asm!("tileloadd tmm0, [{at} + {line}]", at = in(reg) at, line = in(reg) line, out("tmm0") _,
                    options(nostack, readonly));
                if two[1] {
                    asm!("tileloadd tmm1, [{at} + {line} + 64]", at = in(reg) at, line = in(reg) line, out("tmm1") _,
                        options(nostack, readonly));
                }
                if two[0] {
                    asm!("tileloadd tmm2, [{at} + {line}]", at = in(reg) below, line = in(reg) line, out("tmm2") _,
                        options(nostack, readonly));
                }
                if two == [true, true] {
                    asm!("tileloadd tmm3, [{at} + {line} + 64]", at = in(reg) below, line = in(reg) line, out("tmm3") _,
                        options(nostack, readonly));
                }
            }
            for Part { left, right, from, tiles } in parts {
                let a0 = left.lines.as_ptr().add((row / TILE * left.depth_tiles() + from) * TILE);
                let b0 = right.lines.as_ptr().add((col / TILE * right.panel + from) * TILE);
                // Where there is no second tile, nothing leads there.
                let a1 = if two[0] { a0.add(left.depth_tiles() * TILE) } else { a0 };
                let b1 = if two[1] { b0.add(right.panel * TILE) } else { b0 };
                match two {
                    [true, true] => four(a0, a1, b0, b1, *tiles),
                    [true, false] => below_one(a0, a1, b0, *tiles),
                    [false, true] => beside_one(a0, b0, b1, *tiles),
                    [false, false] => one(a0, b0, *tiles),
                }
            }
            asm!("tilestored [{at} + {line}], tmm0", at = in(reg) at, line = in(reg) line, options(nostack));
            if two[1] {
                asm!("tilestored [{at} + {line} + 64], tmm1", at = in(reg) at, line = in(reg) line, options(nostack));
            }
            if two[0] {
                asm!("tilestored [{at} + {line}], tmm2", at = in(reg) below, line = in(reg) line, options(nostack));
            }
            if two == [true, true] {
                asm!("tilestored [{at} + {line} + 64], tmm3", at = in(reg) below, line = in(reg) line, options(nostack));
            }
        }
    }

    /// The 16 lines of the tile after the one that the register points to.
    macro_rules! prefetch_next_tile {
        ($register:literal) => {
            prefetch_next_tile!($register, 1024, 1088, 1152, 1216, 1280, 1344, 1408, 1472, 1536, 1600, 1664, 1728, 1792, 1856, 1920, 1984)
        };
        ($register:literal, $($offset:literal),*) => {
            concat!($("prefetcht0 [{", $register, "} + ", $offset, "]\n"),*)
        };
    }

    /// Defines a loop over `n` tiles. The sums live in tmm0 to tmm3 from one assembly block to the next: the compiler never
    /// touches tile registers. Left tiles come from L2 and are asked for one step ahead, which gains a fifth; what is asked
    /// for behind the last tile is not waited for, and faults nowhere.
    macro_rules! sum {
        ($(#[$meta:meta])* $name:ident, [$($pointer:ident),*], $($step:expr),*) => {
            $(#[$meta])*
            ///
            /// # Safety
            /// Each pointer leads to `n` whole tiles; `n` is not 0; the tiles are configured.
            #[inline(always)]
            unsafe fn $name($($pointer: *const Line,)* n: usize) {
                // SAFETY: as promised by the caller.
                unsafe {
                    asm!("2:", $($step,)* $(concat!("add {", stringify!($pointer), "}, 1024"),)* "dec {n}", "jnz 2b",
                        $($pointer = inout(reg) $pointer => _,)* n = inout(reg) n => _, line = in(reg) 64usize,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, readonly));
                }
            }
        };
    }

    sum!(
        /// Two tiles of rows by two of columns.
        four, [a0, a1, b0, b1],
        prefetch_next_tile!("a0"), prefetch_next_tile!("a1"),
        "tileloadd tmm4, [{a0} + {line}]", "tileloadd tmm6, [{b0} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b1} + {line}]", "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{a1} + {line}]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7"
    );
    sum!(
        /// Two tiles of rows, one of columns.
        below_one, [a0, a1, b0],
        prefetch_next_tile!("a0"), prefetch_next_tile!("a1"),
        "tileloadd tmm6, [{b0} + {line}]", "tileloadd tmm4, [{a0} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{a1} + {line}]", "tdpbf16ps tmm2, tmm5, tmm6"
    );
    sum!(
        /// One tile of rows, two of columns.
        beside_one, [a0, b0, b1],
        "tileloadd tmm4, [{a0} + {line}]", "tileloadd tmm6, [{b0} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b1} + {line}]", "tdpbf16ps tmm1, tmm4, tmm7"
    );
    sum!(
        /// One tile of each.
        one, [a0, b0],
        "tileloadd tmm4, [{a0} + {line}]", "tileloadd tmm6, [{b0} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6"
    );
}
