//! The most memory this process has had resident.

/// Peak resident bytes, mapped pages of files included; `None` where the system does not tell.
pub(crate) fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    parse_high_water_mark(&status)
}

fn parse_high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line_of_the_peak() {
        assert_eq!(parse_high_water_mark("VmPeak:\t9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t1 kB\n"), Some(2048 * 1024));
        assert_eq!(parse_high_water_mark("VmPeak:\t9 kB\n"), None);
        assert_eq!(parse_high_water_mark("VmHWM:\tmany kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_peak() {
        assert!(peak_rss().is_some_and(|bytes| bytes > 100_000));
    }
}
