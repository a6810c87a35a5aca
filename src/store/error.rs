//! Why a store cannot answer.

use std::error::Error;
use std::fmt;

use crate::BoxError;

/// Why a store could not answer. No kind of it ever means that a row is absent.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    source: Option<BoxError>,
}

impl StoreError {
    /// An error of this kind, with what caused it.
    pub fn new(kind: StoreErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }

    /// What to do about it.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl From<StoreErrorKind> for StoreError {
    fn from(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            StoreErrorKind::Unavailable => "the store cannot be reached",
            StoreErrorKind::Conflict => "a row with this id exists already",
            StoreErrorKind::Schema => {
                "the store's schema is not the one of this version: run the migrations"
            }
            StoreErrorKind::Corrupt => "a stored row cannot be read",
            StoreErrorKind::Denied => {
                "the store's role lacks a privilege: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL \
                 TABLES IN SCHEMA … to it, and USAGE ON SCHEMA …"
            }
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// What to do about a [`StoreError`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Try again: the store is away, slow or in the middle of a failover.
    Unavailable,
    /// The id is taken.
    Conflict,
    /// Run the migrations.
    Schema,
    /// A row holds what this version cannot read.
    Corrupt,
    /// Grant the role of the store what it lacks.
    Denied,
}
