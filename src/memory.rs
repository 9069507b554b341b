//! The most memory this process has had resident, and what the machine has left.

/// Peak resident bytes, mapped pages of files included; `None` where the system does not tell.
pub(crate) fn peak_rss() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Makes [`peak_rss`] start anew from what is resident now, where the system can (Linux); says whether it did.
pub(crate) fn reset_peak_rss() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Bytes that new work can have without swapping; `None` where the system does not tell.
pub(crate) fn available() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// The value of a line like `VmHWM:  2048 kB`, in bytes.
fn kilobytes(lines: &str, name: &str) -> Option<u64> {
    let line = lines.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line_asked_for() {
        let lines = "VmPeak:\t9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t1 kB\n";
        assert_eq!(kilobytes(lines, "VmHWM:"), Some(2048 * 1024));
        assert_eq!(kilobytes(lines, "VmSwap:"), None);
        assert_eq!(kilobytes("VmHWM:\tmany kB\n", "VmHWM:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_peak_and_the_machine_memory() {
        assert!(peak_rss().is_some_and(|bytes| bytes > 100_000));
        assert!(available().is_some_and(|bytes| bytes > 1_000_000));
    }
}
