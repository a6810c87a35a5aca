//! The official MCP SDKs as clients that hold our tokens, against the gateway
//! as a process, a real PostgreSQL and the fault laboratory.
//!
//! `tests/sdk/run` installs the SDKs, runs these and prints what each one did.
//! A scenario is passed when no login was asked for and the client works again:
//! the same client, or where the SDK itself broke the session, the application
//! started again with the tokens that it had stored. What it took is reported.
//!
//! The SDKs differ in what they leave to their application:
//!
//! | | TypeScript 1, 2 | Python 1, 2 | Rust 3 |
//! |---|---|---|---|
//! | refreshes | on a 401 | by its clock; a 401 is a login | 30 s early by its clock, and on a 401 |
//! | a token request gets no answer | asks for a login and keeps the tokens | the session is over | the call fails, the next one refreshes |
//! | so the application | gives it a `fetch` that asks again | starts again with what it stored | does nothing |
//! | started again | refreshes on the 401 | holds the token for good for ever: the application says when it expires | refreshes by its clock |
//! | asks for a login | by itself | by itself | returns an error that says so |
//!
//! Each is told by lines what to do: `tests/sdk/client.*` are the applications.

mod client;
mod front;
mod scenarios;
mod stage;

use std::path::PathBuf;

/// The application on the Rust SDK; the others are programs beside it.
#[path = "../../sdk/client.rs"]
mod rust;

macro_rules! tests {
    ($($module:ident: $sdk:ident),*) => {$(
        mod $module {
            use super::Sdk;
            use super::scenarios;

            tests!(in $sdk:
                expiry_and_rotation,
                lost_token_response,
                parallel_sessions,
                parallel_bursts,
                provider_down,
                postgres_down,
                revocation
            );
        }
    )*};
    (in $sdk:ident: $($scenario:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "run by tests/sdk/run, which installs the SDKs"]
        async fn $scenario() {
            let sdk = Sdk::$sdk;
            let story = scenarios::$scenario(sdk).await;
            super::report(sdk, stringify!($scenario), &story);
        }
    )*};
}

tests! {
    typescript_1: TypeScript1,
    typescript_2: TypeScript2,
    python_1: Python1,
    python_2: Python2,
    rust_3: Rust3
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sdk {
    TypeScript1,
    TypeScript2,
    Python1,
    Python2,
    Rust3,
}

impl Sdk {
    fn name(self) -> &'static str {
        match self {
            Self::TypeScript1 => "typescript_1",
            Self::TypeScript2 => "typescript_2",
            Self::Python1 => "python_1",
            Self::Python2 => "python_2",
            Self::Rust3 => "rust_3",
        }
    }
}

/// Leaves a line for `tests/sdk/run` to print.
fn report(sdk: Sdk, scenario: &str, story: &str) {
    let directory = installed("report");
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join(format!("{}.{scenario}", sdk.name()));
    std::fs::write(file, story).unwrap();
}

/// What `tests/sdk/run` has put there.
#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
fn installed(path: &str) -> PathBuf {
    let directory = std::env::var("SDK_DIRECTORY");
    let directory = directory.expect("SDK_DIRECTORY is not set: run these with `tests/sdk/run`");
    PathBuf::from(directory).join(path)
}
