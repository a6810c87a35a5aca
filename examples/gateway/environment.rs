//! The environment, as settings; and what is said when one of them is bad.

use std::env;
use std::error::Error;
use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;

/// A setting that is missing or bad. Never shows its value: it may be a secret.
#[derive(Debug)]
pub(crate) struct Invalid {
    name: &'static str,
    reason: String,
}

impl Invalid {
    pub(crate) fn new(name: &'static str, reason: impl fmt::Display) -> Self {
        Self {
            name,
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

impl Error for Invalid {}

/// An empty variable counts as unset.
#[expect(clippy::disallowed_methods, reason = "a program reads its environment")]
pub(crate) fn text(name: &'static str) -> Result<Option<String>, Invalid> {
    match env::var(name) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(Invalid::new(name, "is not UTF-8")),
    }
}

pub(crate) fn parsed<T: FromStr>(name: &'static str, what: &str) -> Result<Option<T>, Invalid> {
    text(name)?
        .map(|text| text.trim().parse())
        .transpose()
        .map_err(|_error| Invalid::new(name, format!("must be {what}")))
}

/// Says on one line why the program ends, and how it exits: with 2 for a setting.
pub(crate) fn failed(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("{}", chain(error));
    if error.is::<Invalid>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

/// An error with all its causes, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    causes
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| {
            // Some errors repeat their cause in their own words.
            if text.ends_with(&cause) {
                text
            } else {
                format!("{text}: {cause}")
            }
        })
        .replace('\n', " ")
}
