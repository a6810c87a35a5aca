//! What a repo grant may do at most, whatever the installation was granted.

use std::collections::BTreeMap;

use super::error::MintError;
use crate::provider::github::Access;

/// The permissions to ask GitHub for; those of the default if none are named.
///
/// This is a list of what is given, not of what is not: GitHub adds permissions
/// every year, and some of them (`administration`, `workflows`, `secrets`) are
/// ways to all others.
pub(super) fn capped(
    asked: Option<&BTreeMap<String, String>>,
) -> Result<BTreeMap<String, String>, MintError> {
    let mut given = BTreeMap::new();
    match asked {
        Some(asked) if !asked.is_empty() => {
            for (name, access) in asked {
                if !NAMES.contains(&name.as_str()) {
                    return Err(MintError::denied(
                        "there are contents, metadata, pull_requests, issues and checks",
                    ));
                }
                if !ACCESSES.contains(&access.as_str()) {
                    return Err(MintError::denied("access is read or write"));
                }
                given.insert(name.clone(), access.clone());
            }
        }
        Some(_) | None => {
            for (name, access) in DEFAULT {
                given.insert(name.to_owned(), access.to_owned());
            }
        }
    }
    // Every token has it, and GitHub knows no other access to it.
    given.insert("metadata".to_owned(), "read".to_owned());
    Ok(given)
}

/// Whether a repo grant may have this permission at all.
pub(crate) fn is_given(name: &str, access: &str) -> bool {
    NAMES.contains(&name) && ACCESSES.contains(&access)
}

/// Whether somebody with these rights in a repository may have a token with these
/// permissions: the App may do more there than its users.
pub(super) fn are_within(permissions: &BTreeMap<String, String>, user: Access) -> bool {
    permissions.iter().all(|(name, access)| {
        let is_write = access == "write";
        let is_discussion = matches!(name.as_str(), "issues" | "pull_requests");
        !is_write || user.push || (is_discussion && user.triage)
    })
}

pub(super) const NAMES: [&str; 5] = ["contents", "metadata", "pull_requests", "issues", "checks"];
pub(super) const ACCESSES: [&str; 2] = ["read", "write"];
const DEFAULT: [(&str, &str); 2] = [("contents", "write"), ("pull_requests", "write")];

#[cfg(test)]
mod tests {
    use super::super::error::MintErrorKind;
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn map(pairs: Pairs<'_>) -> BTreeMap<String, String> {
        let own = |(name, access): &(&str, &str)| ((*name).to_owned(), (*access).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn what_is_on_the_list_is_given_and_metadata_is_only_read() {
        let default: Pairs<'_> = &[
            ("contents", "write"),
            ("metadata", "read"),
            ("pull_requests", "write"),
        ];
        assert_eq!(capped(None).unwrap(), map(default));
        let rows: [(Pairs<'_>, Pairs<'_>); 4] = [
            (&[], default),
            (
                &[("contents", "read")],
                &[("contents", "read"), ("metadata", "read")],
            ),
            (&[("metadata", "write")], &[("metadata", "read")]),
            (
                &[("checks", "write"), ("issues", "read")],
                &[
                    ("checks", "write"),
                    ("issues", "read"),
                    ("metadata", "read"),
                ],
            ),
        ];
        for (asked, want) in rows {
            assert_eq!(capped(Some(&map(asked))).unwrap(), map(want), "{asked:?}");
        }
    }

    #[test]
    fn what_is_not_on_the_list_is_denied_whatever_is_beside_it() {
        let rows: [Pairs<'_>; 11] = [
            &[("administration", "read")],
            &[("workflows", "write")],
            &[("contents", "read"), ("secrets", "read")],
            &[("contents", "admin")],
            &[("metadata", "admin")],
            &[("contents", "none")],
            &[("contents", "")],
            &[("contents", "Read")],
            &[("Contents", "read")],
            &[("contents ", "read")],
            &[("", "read")],
        ];
        for asked in rows {
            let error = capped(Some(&map(asked))).unwrap_err();
            assert_eq!(error.kind(), MintErrorKind::PermissionDenied, "{asked:?}");
        }
    }
}
