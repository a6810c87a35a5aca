//! Repo grants: tokens of a GitHub App for one repository, and a refresh token
//! of ours for each that outlives the user's own.
//!
//! A caller who can reach a repository through an installation of the App gets
//! an installation access token for it, and nothing else. Who can is decided by
//! GitHub, asked with the caller's own token; what for, by a fixed list of
//! permissions. Both are looked at before anything is minted:
//!
//! 1. the input, and the permissions that are asked for: no network;
//! 2. the installation is one of the caller's, on the account that is named;
//! 3. the repository is one that the caller can see through it.
//!
//! A redemption of the refresh token later needs the App's key alone: a repo
//! grant is a direct grant, by which the client gets the upstream access token
//! itself.

mod entitlement;
mod error;
mod mint;
mod minted;
mod permissions;
mod request;

pub use self::error::MintError;
pub use self::error::MintErrorKind;
pub use self::mint::RepoGrants;
pub use self::minted::Minted;
pub use self::minted::Repository;
pub(crate) use self::permissions::is_given;
pub use self::request::MintRequest;
