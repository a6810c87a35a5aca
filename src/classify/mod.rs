//! Is this response the upstream's way of saying that the credential expired?
//!
//! The head decides, by default its status alone. Where the refusal hides in
//! the body, [`body::ExpiredInBodyLayer`] looks there. An in-process handler
//! may also say so itself, by putting [`Expired`] into the extensions of its
//! response.

pub mod body;

use std::fmt;

use http::StatusCode;
use http::response::Parts;

/// Judges the head of a response. A `true` costs a refresh, so it should mean
/// the access token and nothing else; 403 usually does not.
///
/// ```
/// use http::response::Parts;
/// use regrant::classify::Classify;
///
/// /// An upstream that answers 419 when a token has expired.
/// #[derive(Debug)]
/// struct Legacy;
///
/// impl Classify for Legacy {
///     fn is_expired(&self, head: &Parts) -> bool {
///         head.status.as_u16() == 419
///     }
/// }
/// # let (head, ()) = http::Response::builder().status(419).body(()).unwrap().into_parts();
/// # assert!(Legacy.is_expired(&head));
/// ```
pub trait Classify: fmt::Debug + Send + Sync + 'static {
    /// Whether the upstream refused the access token.
    fn is_expired(&self, head: &Parts) -> bool;
}

/// Every 401, and nothing else (RFC 6750 §3.1).
///
/// ```
/// use regrant::classify::{Classify, Unauthorized};
///
/// let (head, ()) = http::Response::builder().status(401).body(()).unwrap().into_parts();
/// assert!(Unauthorized.is_expired(&head));
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::exhaustive_structs,
    reason = "users name the value; it will never hold anything"
)]
pub struct Unauthorized;

impl Classify for Unauthorized {
    fn is_expired(&self, head: &Parts) -> bool {
        head.status == StatusCode::UNAUTHORIZED
    }
}

/// In the extensions of a response: the upstream refused the credential,
/// whatever the [`Classify`] of the route says to the rest. The request is
/// refreshed and replayed.
///
/// ```
/// use regrant::classify::Expired;
///
/// let mut response = http::Response::new("the upstream said 401");
/// response.extensions_mut().insert(Expired);
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::exhaustive_structs,
    reason = "users name the value; it will never hold anything"
)]
pub struct Expired;
