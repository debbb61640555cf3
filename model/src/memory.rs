//! Keeps freed memory with the process, so that a step finds its buffers where the step before left them. glibc's defaults
//! give large blocks back at once, and faulting them in again costs what a fast matrix product gains.

/// Tells glibc's allocator to serve large blocks from the heap and not to trim it; elsewhere it does nothing. Call it once,
/// before any thread is started.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const ONE_GIB: i32 = 1 << 30;
        // Older versions refuse more than half of a heap of theirs (`HEAP_MAX_SIZE / 2`); glibc 2.36 takes any.
        const MOST_OF_OLD: i32 = 32 << 20;
        // SAFETY: mallopt only sets tuning parameters of the allocator; the two names and the values are valid.
        #[expect(unsafe_code, reason = "a C library setting without a safe wrapper")]
        let set = |parameter, value| unsafe { libc::mallopt(parameter, value) == 1 };
        if !set(libc::M_MMAP_THRESHOLD, ONE_GIB) {
            set(libc::M_MMAP_THRESHOLD, MOST_OF_OLD);
        }
        set(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
