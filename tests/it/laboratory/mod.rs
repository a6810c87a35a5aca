//! Replicas as processes, against the fault laboratory (`tests/laboratory`).
//!
//! These put the promise to the test where it is hardest to keep: under load,
//! while providers fail, processes die and the database goes away. They need
//! the machine for themselves; `.config/nextest.toml` sees to that, and
//! [`alone`] where there is no nextest.
//!
//! | variable | |
//! |---|---|
//! | `LABORATORY_SECONDS` | how long each load lasts (5) |
//! | `LABORATORY_KILLS` | how many processes are killed (8) |
//! | `LABORATORY_OUTAGE` | for how many seconds the database is away (5) |
//! | `LABORATORY_GRANTS` | how many grants are revoked in each way (5) |
//! | `LABORATORY_ASYNC` | shows also what asynchronous replication loses (not set) |
//! | `LABORATORY_SEED` | repeats the random choices of a run, which prints its own |

#![expect(clippy::print_stdout, reason = "figures are part of the result")]

mod asynchronous;
mod chaos;
mod deployment;
mod failover;
mod faults;
mod kills;
mod load;
mod outage;
mod replicas;
mod revocation;
mod rotations;
mod traffic;

use tokio::sync::Mutex;
use tokio::sync::MutexGuard;

/// Keeps the other tests of this kind waiting while one runs.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// The seed of a run, which its output tells.
fn seed() -> u64 {
    let seed = number("LABORATORY_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("LABORATORY_SEED={seed}");
    seed
}

#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}
