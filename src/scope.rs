//! Scopes (RFC 6749 §3.3): space-separated, in any order.

use crate::token::ALL_SCOPES;

/// Whether everything in `wanted` was granted.
pub(crate) fn covers(granted: &str, wanted: &str) -> bool {
    let has = |scope| granted.split_ascii_whitespace().any(|s| s == scope);
    wanted.split_ascii_whitespace().all(has)
}

/// A bit for each granted scope that is wanted; all bits if that is every one,
/// or if there are too many to count.
pub(crate) fn mask(granted: &str, wanted: &str) -> u64 {
    if covers(wanted, granted) {
        return ALL_SCOPES;
    }
    let has = |scope| wanted.split_ascii_whitespace().any(|s| s == scope);
    let mut mask = 0;
    for (bit, scope) in granted.split_ascii_whitespace().enumerate() {
        if bit == 63 {
            return ALL_SCOPES;
        }
        if has(scope) {
            mask |= 1 << bit;
        }
    }
    mask
}

/// What a [`mask`] leaves of the granted scopes; `None` if that is all.
pub(crate) fn narrowed(granted: &str, mask: u64) -> Option<String> {
    if mask == ALL_SCOPES {
        return None;
    }
    let kept = granted
        .split_ascii_whitespace()
        .enumerate()
        .filter(|(bit, _scope)| *bit < 63 && mask & (1 << bit) != 0)
        .map(|(_bit, scope)| scope);
    Some(kept.collect::<Vec<_>>().join(" "))
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

    #[test]
    fn a_mask_keeps_what_is_wanted() {
        let keep = |granted, wanted| narrowed(granted, mask(granted, wanted));
        assert_eq!(keep("read write", "write").as_deref(), Some("write"));
        assert_eq!(keep("a b c", "c a").as_deref(), Some("a c"));
        assert_eq!(keep("read write", "write read"), None);
        assert_eq!(keep("read", "read"), None);
        let many: Vec<_> = (0..65).map(|n| n.to_string()).collect();
        assert_eq!(keep(&many.join(" "), "3"), None, "too many to count");
    }
}
