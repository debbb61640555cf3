//! How much memory a process has taken, as the system counts it.

/// The largest resident set of this process so far, in bytes: VmHWM of Linux's /proc; None elsewhere.
pub fn peak_rss_bytes() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The same of another one.
pub fn peak_rss_bytes_of(process: u32) -> Option<u64> {
    parse(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?)
}

fn parse(status: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_and_means_kib() {
        assert_eq!(parse("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n"), Some(1_263_616));
        assert_eq!(parse("VmRSS:\t 1 kB\n"), None);
        if cfg!(target_os = "linux") {
            assert!(peak_rss_bytes().is_some_and(|bytes| bytes > 1 << 20));
            assert!(peak_rss_bytes_of(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
            assert_eq!(peak_rss_bytes_of(u32::MAX), None);
        }
    }
}
