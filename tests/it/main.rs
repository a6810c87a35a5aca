//! The tests: one binary, because each one links the whole tree.
//!
//! Run them with `tests/run`, which brings its own PostgreSQL.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test"
)]

mod support;

mod abuse;
mod attempts;
mod audit;
mod basic;
mod browsers;
mod clients;
mod codes;
mod connections;
mod crowd;
mod database_trouble;
mod dependencies;
mod disconnects;
mod endpoint;
mod failure_modes;
mod fake_github;
mod forgeries;
mod gateway;
mod git;
mod github_app;
mod handlers;
mod histories;
mod introspection;
mod invalidation;
mod keys;
mod laboratory;
mod layer;
mod logins;
mod metadata;
mod named;
mod operator;
mod outbox;
mod outbox_logins;
mod outbox_races;
mod presets;
mod provider_assertion;
mod provider_discovery;
mod provider_server;
mod provider_transport;
mod providers;
mod races;
mod replay;
mod repo_grants;
mod repo_grants_example;
mod retention;
mod revocation;
mod scale;
mod scopes;
mod sdk;
mod secrecy;
mod set_back;
mod simulation;
mod store;
mod store_trouble;
mod tables;
mod trouble;
mod upstreams;
mod windows;
mod wraps;

/// The provider of the example gateway: single-use refresh tokens, family
/// revocation.
#[path = "../../examples/gateway/provider.rs"]
mod provider;

/// The GitHub of the example of repo grants.
#[path = "../../examples/repo_grants/github/mod.rs"]
mod github;
