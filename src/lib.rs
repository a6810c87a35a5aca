#![doc = include_str!("../README.md")]
//!
//! # Reading order
//!
//! The modules below stand in the order in which a request meets them:
//! [`layer`] and [`service`] sort it out, [`future`] carries it, `authenticate`
//! finds its grant, or [`resolve`] whom the gateway knows, [`replay`],
//! [`classify`] and [`response`] handle bodies and verdicts, `refresh` spends
//! refresh tokens at a [`provider`], `revocation` tells providers what has ended
//! here, `retention` forgets it, [`store`] keeps what must last, [`seal`] what must stay secret.
//! [`endpoint`] is the other way in, `repo_grants` a way to make grants.

pub mod layer;
pub mod service;

mod exchange;
pub mod future;

mod authenticate;
mod bearer;
mod cache;
mod cross_origin;
mod grant;
mod named;
mod refusals;
mod rejection;
pub mod resolve;
mod resource;
mod route;
mod scope;

pub mod classify;
pub mod replay;
pub mod response;

mod credential;
mod refresh;
mod revocation;

pub mod provider;

pub mod seal;
pub mod store;

pub mod health;
mod invalidation;
mod journal;

mod builder;
mod client;
mod disconnect;
pub mod endpoint;
mod issue;
mod keep_alive;
pub mod key_rotation;
mod link;
mod login;
mod regrant;
#[cfg(feature = "reqwest")]
pub mod repo_grants;
mod retention;
mod start;
mod state;

pub mod audit;
mod background;
pub mod clock;
pub mod error;
pub mod id;
mod jitter;
pub mod secret;
pub mod settings;
mod sync;
mod telemetry;
mod token;

#[cfg(doc)]
#[doc = include_str!("deployment.md")]
pub mod deployment {}

pub use self::builder::RegrantBuilder;
pub use self::client::Client;
pub use self::endpoint::Endpoints;
pub use self::grant::GrantContext;
pub use self::id::CredentialId;
pub use self::id::GrantId;
pub use self::issue::CodeRequest;
pub use self::issue::IssueError;
pub use self::issue::Issued;
pub use self::issue::IssuedCode;
pub use self::layer::RefreshLayer;
pub use self::login::Login;
pub use self::login::Upstream;
pub use self::regrant::Regrant;
pub use self::retention::SweepReport;
pub use self::start::StartError;

/// Any error, as tower has it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
