//! A fault laboratory: an OAuth provider and an upstream in a process of their
//! own, which go wrong in every way that real ones do, when told to.
//!
//! The provider is of the strict kind: refresh tokens are single-use, and one
//! that comes back is a *double spend*, which ends the whole family, that is
//! all tokens of that login (RFC 9700 §4.14.2). The upstream accepts live access
//! tokens only. Nothing here is random unless a chance was set, and nothing
//! waits unless it was told to.
//!
//! It listens on a free port of 127.0.0.1 and prints `listening on http://…`.
//! With the argument `attached` it ends when its standard input does, so that
//! no test leaves it behind.
//!
//! # What a gateway sees
//!
//! | route | what it does |
//! |---|---|
//! | `POST /token` | RFC 6749 §6, answers as in §5.1 and §5.2 |
//! | any `/mcp` | 200 and the request's body; 401 with a challenge of its own without a live access token |
//! | any `/tools` | a real MCP server behind the same guard; its tool `whoami` tells the user |
//!
//! # What a test sees
//!
//! Bodies are JSON objects; what they do not name stays as it is, and what
//! nobody knows is a 400.
//!
//! | route | body, or answer |
//! |---|---|
//! | `POST /lab/log-in` | `user` → `family`, `access_token`, `refresh_token`, `expires_in` |
//! | `POST /lab/settings` | `lifetime` of access tokens in seconds (3600); `expires_in`: what is said of it (the truth); `ends_previous`: a refresh ends the access token before (false); `revokes_families` (true) |
//! | `POST /lab/faults` | `seed`; `chances`: a list of `{"fault", "chance"}`, replaces the former one; `next`: a list, appended to the script |
//! | `GET /lab/faults` | `chances`, and what is left of the script as `next` |
//! | `POST /lab/release` | lets go whom `hold_before` and `hold_after` hold |
//! | `POST /lab/revoke-access` | ends access tokens early: all, or those of `user` |
//! | `POST /lab/log-out` | ends the logins of `user` |
//! | `GET /lab/counts` | `calls`, `refreshes`, `double_spends`, `invalid_grants`, `in_flight`, `held`, `served`, `refused` and `faults` by name |
//! | `GET /lab/families` | for every login `family`, `user`, `alive`, `refreshes`, `delivered`, and of the last refresh `spent_by`, a `client_id`, `spent_at` and `written_at` in microseconds since 1970 |
//!
//! A family's `refreshes` goes up when the provider issues new tokens; it is
//! `delivered` when the whole answer with the last ones has been written to the
//! gateway's connection. `in_flight` counts calls that have not been answered,
//! also those whose gateway is gone: what a provider has begun it finishes.
//!
//! # Faults
//!
//! A call takes the first entry of the script if there is one: a fault, a list
//! of faults, or `[]` for none. Otherwise every delay and hold happens by its own
//! chance, and at most one of the others: `0.1` for each of two is a fifth of
//! all calls. `fault.rs` lists them; one without parameters may be written as
//! its name alone:
//!
//! ```sh
//! curl -d '{"next": ["reset_before", [{"fault": "delay_after", "seconds": 0.5}, "half_body"]]}' \
//!     -H 'content-type: application/json' $LABORATORY/lab/faults
//! ```

#![expect(clippy::print_stdout, reason = "a program tells its address")]

mod control;
mod fault;
mod faults;
mod provider;
mod token;
mod tools;
mod upstream;
mod wire;

use std::env;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;

use axum::Router;
use axum::routing::any;
use axum::routing::post;
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::faults::Faults;
use crate::provider::Provider;
use crate::wire::Listener;
use crate::wire::Switch;

// One thread: the laboratory shares its machine with what it tests.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind().await?;
    println!("listening on http://{}", listener.address()?);
    let lab = Laboratory::default();
    let router = Router::new()
        .route("/token", post(token::token))
        .route("/mcp", any(upstream::serve))
        .merge(tools::router(lab.clone()))
        .nest("/lab", control::router())
        .with_state(lab)
        .into_make_service_with_connect_info::<Switch>();

    let is_attached = env::args().nth(1).is_some_and(|word| word == "attached");
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        () = end_of_input(), if is_attached => {}
    }
    Ok(())
}

/// The provider, its faults and its upstream; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Laboratory {
    state: Arc<Mutex<State>>,
    /// Changes whenever those that are held may go.
    gate: Arc<watch::Sender<()>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) provider: Provider,
    pub(crate) faults: Faults,
    /// Calls that have not been answered.
    pub(crate) in_flight: u64,
    pub(crate) held: u64,
    /// What the upstream answered.
    pub(crate) served: u64,
    pub(crate) refused: u64,
}

impl Laboratory {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until somebody says so.
    pub(crate) async fn hold(&self) {
        let mut gate = self.gate.subscribe();
        self.lock().held += 1;
        // The sender lives as long as this.
        let _changed = gate.changed().await;
        self.lock().held -= 1;
    }

    pub(crate) fn release(&self) {
        self.gate.send_replace(());
    }
}

/// A thread waits for it, because a task that does would keep the runtime from
/// ending.
async fn end_of_input() {
    let (ended, end) = oneshot::channel::<()>();
    thread::spawn(move || {
        let _copied = io::copy(&mut io::stdin(), &mut io::sink());
        drop(ended);
    });
    let _dropped = end.await;
}
