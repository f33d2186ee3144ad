//! The kernel's file formats, read with tolerance: unknown fields, "max" and a missing newline are no surprise.
#![expect(clippy::disallowed_methods, reason = "driver: reads the list of controllers")]

use std::path::Path;

use sage_common::CpuList;

/// The words of a file; none if it cannot be read.
pub(super) fn read_list(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// A limit in microseconds, where `max` or a negative number is none. The outer `None` is neither.
pub(super) fn limit(text: &str) -> Option<Option<u64>> {
    match text {
        "max" => Some(None),
        _ if text.starts_with('-') => text.parse::<i64>().ok().map(|_| None),
        _ => text.parse().ok().map(Some),
    }
}

/// The value of `key` in a file of `key value` lines.
pub(super) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(key)).then(|| words.next()).flatten()
    })
}

/// A list of CPUs such as `0-2,5`.
pub(super) fn cpus(text: &str) -> Option<CpuList> {
    // The kernel's NR_CPUS limit, so that a range costs no more than a whole machine.
    let cpu = |text: &str| text.trim().parse::<u16>().ok().filter(|cpu| *cpu < 8192);
    let mut cpus = Vec::new();
    for run in text.split(',') {
        let (first, last) = match run.split_once('-') {
            Some((first, last)) => (cpu(first)?, cpu(last)?),
            None => (cpu(run)?, cpu(run)?),
        };
        cpus.extend(first..=last);
        // Runs of a kernel's list never overlap.
        if cpus.len() > 8192 || last < first {
            return None;
        }
    }
    CpuList::try_from(cpus).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_numbers_max_or_negative() {
        assert_eq!(limit("50000"), Some(Some(50_000)));
        assert_eq!(limit("max"), Some(None));
        assert_eq!(limit("-1"), Some(None));
        for bad in ["", "-", "5.0", "0x10", "18446744073709551616", "maximum"] {
            assert_eq!(limit(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn fields_are_found_among_others() {
        let events = "populated 1\nfrozen 0\nnew_in_7.0 x y\nbare";
        assert_eq!(field(events, "frozen"), Some("0"));
        assert_eq!(field(events, "bare"), None);
        assert_eq!(field(events, "absent"), None);
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpus("0-2,5").map(|list| list.to_string()), Some("0-2,5".to_owned()));
        for bad in ["", "5-2", "0-65535", "0,,1", "a", "-1"] {
            assert_eq!(cpus(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_list_of_cpus_survives_the_round_trip(list in prop::collection::vec(0_u16..8192, 1..64)) {
            let list = CpuList::try_from(list).expect("valid");
            prop_assert_eq!(cpus(&list.to_string()), Some(list));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "[-0-9,max \n]{0,64}") {
            let _ = (cpus(&text), limit(&text), field(&text, "max"));
        }
    }
}
