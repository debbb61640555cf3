//! The kernels touch nothing beside what they were given: every larger allocation of this test lies against a page that may
//! not be touched, behind it in one round and in front of it in the other. A kernel that reads or writes one value too far
//! ends the test with a segmentation fault. Unlike valgrind it knows every instruction, and runs at full speed.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use limbeck_model::decoder::Decoder;
use limbeck_model::divergence::Divergence;
use limbeck_model::layout::Packed;
use limbeck_model::ops::codes::QuantizeBase;
use limbeck_model::ops::flex::bf16::{Engine, Left, Right, fused, over_rows, product, turned};
use limbeck_model::ops::flex::{Compute, FlexOps};
use limbeck_model::ops::{Ops, SoftTarget, Target};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Smaller allocations are left to the system: they hold no matrix.
const SMALLEST: usize = 512;
const PAGE: usize = 4096;

struct Fence;

/// Whether the guard lies in front of an allocation; otherwise behind it.
static IN_FRONT: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static FENCE: Fence = Fence;

/// Pages of an allocation, without its two guards.
fn pages(layout: &Layout) -> usize {
    layout.size().div_ceil(PAGE) * PAGE
}

#[expect(unsafe_code, reason = "an allocator")]
// SAFETY: an allocation is mapped memory of its own, as long as asked for, aligned as the comments say, and unmapped once.
unsafe impl GlobalAlloc for Fence {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() < SMALLEST || layout.align() > PAGE {
            // SAFETY: the caller's promises are passed on.
            return unsafe { System.alloc(layout) };
        }
        let inner = pages(&layout);
        // SAFETY: new anonymous memory, of which the first and the last page are then closed.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(std::ptr::null_mut(), inner + 2 * PAGE, libc::PROT_NONE, flags, -1, 0);
            if start == libc::MAP_FAILED {
                return std::ptr::null_mut();
            }
            let first = start.cast::<u8>().add(PAGE);
            if libc::mprotect(first.cast(), inner, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                return std::ptr::null_mut();
            }
            // Against the last page only as far as the alignment allows: exactly, where the size is a multiple of it.
            let gap =
                if IN_FRONT.load(Ordering::Relaxed) { 0 } else { (inner - layout.size()) & !(layout.align() - 1) };
            first.add(gap)
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if layout.size() < SMALLEST || layout.align() > PAGE {
            // SAFETY: the caller's promises are passed on.
            return unsafe { System.dealloc(at, layout) };
        }
        let first = at as usize & !(PAGE - 1);
        // SAFETY: `alloc` mapped this range for this allocation: the gap in front of it is less than a page.
        unsafe {
            libc::munmap((first - PAGE) as *mut libc::c_void, pages(&layout) + 2 * PAGE);
        }
    }
}

fn engines() -> impl Iterator<Item = Engine> {
    [Engine::Portable, Engine::Avx512, Engine::Amx].into_iter().filter(|e| e.available())
}

/// Products of operands whose tiles fill their buffers to the end, and of such as do not.
fn products() {
    for (m, k, n) in
        [(1, 1, 1), (16, 512, 16), (17, 512, 48), (33, 31, 49), (256, 512, 192), (300, 65, 256), (48, 96, 33)]
    {
        let (a, b) = (common::values(m * k, 1, 1.0), common::values(k * n, 2, 1.0));
        let lefts = [Left::from_rows(&a, k, m, k), Left::from_columns(&a, m, m, k)];
        let rights = [Right::from_rows(&b, n, k, n), Right::from_columns(&b, k, k, n)];
        for engine in engines() {
            let terms = [(&lefts[0], rights[0].all())];
            let [made, zeros] = fused(engine, [m, n], [&terms], |_, _, [_, more]| *more = [[0.0; 32]; 32]);
            assert_eq!((turned(&made).cols, made.rows), (n, m));
            let sums = over_rows(engine, &[&Left::from_columns(&a, k, k, m)], &zeros);
            assert!(sums[0].len() == k * n && sums[0].iter().all(|x| *x == 0.0));
        }
        let run = |engine: Engine, accumulate: bool| {
            let mut out = vec![0.5f32; (m - 1) * (n + 3) + n];
            let terms = [(&lefts[0], rights[0].all()), (&lefts[1], rights[1].all())];
            product(engine, true, &mut out, n + 3, accumulate, &terms);
            out
        };
        for accumulate in [false, true] {
            let want = run(Engine::Portable, accumulate);
            for engine in engines() {
                for (x, y) in run(engine, accumulate).iter().zip(&want) {
                    assert!((x - y).abs() < 1e-4 * (k as f32).sqrt(), "{engine:?} {m} {k} {n}: {x} {y}");
                }
            }
        }
    }
}

/// A training step and a divergence through a whole decoder, in every way of computing and of keeping the base.
fn steps() {
    let mut batch = Packed::with_prefix(&[3; 19], 0);
    let rows = batch.push_chain(&[5; 141], 19);
    batch.push_chain(&[7], 19);
    let targets: Vec<Target> = rows.clone().map(|row| Target { row, token: 4, weight: 1.0 }).collect();
    let computes = std::iter::once(Compute::F32).chain(engines().map(Compute::Bf16));
    for compute in computes {
        for quantize in [QuantizeBase::None, QuantizeBase::Int8, QuantizeBase::Nf4] {
            let ops: Arc<dyn Ops> = Arc::new(FlexOps::new(compute));
            let plain = common::decoder(ops.clone(), None);
            let mut load = |name: &str| common::tensor(&plain.config, name);
            let decoder =
                Decoder::load_quantized(&plain.config, ops.clone(), true, quantize, &mut load, &mut |_| Ok(None))
                    .unwrap();
            let (loss, grads) = common::step_of(&decoder, &batch, &targets);
            assert!(loss.is_finite() && grads.iter().flatten().all(|g| g.is_finite()));
            let hidden = decoder.forward(&Arc::new(batch.clone()), None, None, None).unwrap();
            let soft = SoftTarget::new(rows.end - 1, vec![49, 0], vec![-1.0, -2.0], 1.0).unwrap();
            let loss = ops.linear_divergence(hidden, decoder.head(), &[soft], Divergence::ForwardKl, 1.0);
            assert!(loss.to_data().convert::<f32>().try_into_vec::<f32>().unwrap()[0].is_finite());
        }
    }
}

/// One test, for the side of the guard is one for the process.
#[test]
fn kernels_touch_nothing_beside_their_operands() {
    for in_front in [false, true] {
        IN_FRONT.store(in_front, Ordering::Relaxed);
        products();
        steps();
    }
}

/// The fence stands: a process of its own that reads one byte too far does not live.
#[test]
fn a_read_beyond_the_end_is_caught() {
    const CHILD: &str = "LIMBECK_READ_BEYOND";
    if std::env::var_os(CHILD).is_some() {
        let values = vec![1f32; 1000];
        // SAFETY: none; this is the fault that the fence must catch.
        #[expect(unsafe_code, reason = "the test's subject")]
        let beyond = unsafe { values.as_ptr().add(1000).read_volatile() };
        panic!("read {beyond} beyond the end");
    }
    let me = std::env::current_exe().unwrap();
    let status = std::process::Command::new(me)
        .args(["--exact", "a_read_beyond_the_end_is_caught"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}
