//! What the gateway's own tokens begin with.

use crate::error::ConfigError;
use crate::token::Kind;

/// Fixed beginnings of the gateway's tokens, for secret scanners to look for.
///
/// Tokens with the default prefixes stay good after they are changed.
///
/// ```
/// use regrant::settings::TokenPrefixes;
///
/// let prefixes = TokenPrefixes::default().access("acme_at_").refresh("acme_rt_");
/// assert_eq!(prefixes.access, "acme_at_");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TokenPrefixes {
    /// Of access tokens.
    pub access: String,
    /// Of refresh tokens.
    pub refresh: String,
    /// Of authorization codes.
    pub code: String,
    /// Of the refresh tokens of repo grants.
    pub repo_grant: String,
}

impl TokenPrefixes {
    /// The prefix of access tokens. The default is `rgat_`.
    #[must_use]
    pub fn access(mut self, prefix: impl Into<String>) -> Self {
        self.access = prefix.into();
        self
    }

    /// The prefix of refresh tokens. The default is `rgrt_`.
    #[must_use]
    pub fn refresh(mut self, prefix: impl Into<String>) -> Self {
        self.refresh = prefix.into();
        self
    }

    /// The prefix of authorization codes. The default is `rgac_`.
    #[must_use]
    pub fn code(mut self, prefix: impl Into<String>) -> Self {
        self.code = prefix.into();
        self
    }

    /// The prefix of the refresh tokens of repo grants. The default is `ghr_`, as
    /// GitHub's own have it.
    #[must_use]
    pub fn repo_grant(mut self, prefix: impl Into<String>) -> Self {
        self.repo_grant = prefix.into();
        self
    }

    pub(crate) fn of(&self, kind: Kind) -> &str {
        match kind {
            Kind::Access => &self.access,
            Kind::Code => &self.code,
            Kind::Direct => &self.repo_grant,
            Kind::Refresh => &self.refresh,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let all = [&self.access, &self.refresh, &self.code, &self.repo_grant];
        let is_plain = |prefix: &String| {
            (2..=32).contains(&prefix.len())
                && prefix
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if !all.iter().all(|prefix| is_plain(prefix)) {
            return Err(ConfigError::new(
                "token prefixes",
                "must be 2 to 32 letters, digits and underscores",
            ));
        }
        let is_beginning = |one: usize, other: usize| {
            let pair = all.get(one).zip(all.get(other));
            one != other && pair.is_some_and(|(one, other)| other.starts_with(one.as_str()))
        };
        if (0..all.len()).any(|one| (0..all.len()).any(|other| is_beginning(one, other))) {
            return Err(ConfigError::new(
                "token prefixes",
                "must not begin with one another",
            ));
        }
        Ok(())
    }
}

impl Default for TokenPrefixes {
    fn default() -> Self {
        Self {
            access: Kind::Access.label().to_owned(),
            refresh: Kind::Refresh.label().to_owned(),
            code: Kind::Code.label().to_owned(),
            repo_grant: Kind::Direct.label().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_plain_and_none_begins_with_another() {
        let default = TokenPrefixes::default();
        assert!(default.check().is_ok());
        assert!(default.clone().access("acme_at_").check().is_ok());
        for bad in ["", "a", "ab.", "rgrt_", "rgrt_x", "rg", "ünder_"] {
            assert!(default.clone().access(bad).check().is_err(), "{bad}");
        }
    }
}
