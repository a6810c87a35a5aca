//! Scopes (RFC 6749 §3.3): space-separated, in any order.

/// Whether everything in `wanted` was granted.
pub(crate) fn covers(granted: &str, wanted: &str) -> bool {
    let has = |scope| granted.split_ascii_whitespace().any(|s| s == scope);
    wanted.split_ascii_whitespace().all(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_compared_in_any_order() {
        for (granted, wanted, want) in [
            ("read write", "write read", true),
            ("read write", "", true),
            ("", "", true),
            ("read write", "rea", false),
            ("", "read", false),
        ] {
            assert_eq!(covers(granted, wanted), want, "{granted} / {wanted}");
        }
    }
}
