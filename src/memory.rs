//! The most memory this process has had resident, what the machine has left, and keeping a model in memory.

use crate::failure::Hint;
use tidbit_runtime::format::ModelFile;

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

/// Bytes of files that this process has mapped as huge pages; `None` where the system does not tell.
pub(crate) fn mapped_in_huge_pages() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/smaps_rollup").ok()?, "FilePmdMapped:")
}

/// Keeps all of a model file in memory.
///
/// # Errors
/// When the system refuses, with what it allows.
pub(crate) fn lock(file: &ModelFile) -> anyhow::Result<()> {
    file.lock().map_err(|error| match lock_limit() {
        Some(limit) if limit < file.len() as u64 => error.hint(format!(
            "this process may lock {limit} bytes: raise that limit (`ulimit -l`, in units of 1024 bytes) or leave out --mlock"
        )),
        _ => error.into(),
    })
}

/// Bytes that this process may lock in memory; `None` when there is no limit, or the system does not tell.
fn lock_limit() -> Option<u64> {
    soft_limit(&std::fs::read_to_string("/proc/self/limits").ok()?, "Max locked memory")
}

/// The soft limit in a line like `Max locked memory         8388608              8388608              bytes`.
fn soft_limit(lines: &str, name: &str) -> Option<u64> {
    lines.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
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

    #[test]
    fn reads_the_limit_asked_for() {
        let lines = "Limit  Soft Limit  Hard Limit  Units\nMax locked memory   65536   unlimited   bytes\nMax processes  1  2  p\n";
        assert_eq!(soft_limit(lines, "Max locked memory"), Some(65536));
        assert_eq!(soft_limit("Max locked memory  unlimited  unlimited  bytes", "Max locked memory"), None);
        assert_eq!(soft_limit(lines, "Max rain"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_peak_and_the_machine_memory() {
        assert!(peak_rss().is_some_and(|bytes| bytes > 100_000));
        assert!(available().is_some_and(|bytes| bytes > 1_000_000));
    }
}
