//! Deterministic simulation: three replicas over one store, in paused time,
//! with seeded faults. A replica may crash at any await, a store call fail
//! before or after its commit, a provider's answer be late, lost or given twice,
//! a client go away. The rules are checked while it happens:
//!
//! * no refresh token is spent twice, unless the store knows of an attempt that
//!   was cut off;
//! * no live login is marked as ended, and no revoked grant comes back;
//! * no login is ended at its provider that a grant still uses, and all are
//!   that none does;
//! * every request ends in success, 503 or a justified 401;
//! * when the trouble is over, every login that is not over works.
//!
//! | variable | |
//! |---|---|
//! | `SIMULATION_SEEDS` | how many seeds to run (1,000) |
//! | `SIMULATION_FIRST` | the first of them (0) |
//! | `SIMULATION_SEED` | run this one alone and tell its story |

#![expect(clippy::print_stdout, reason = "figures are part of the result")]

mod replica;
mod truth;
mod world;

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;

use self::truth::Counts;
use self::world::World;

/// How one seed ended.
struct Ended {
    violations: Vec<String>,
    history: u64,
    counts: Counts,
}

fn run(seed: u64, is_loud: bool) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let story = || runtime.block_on(World::live(seed, is_loud));
    let (violations, history, counts) =
        catch_unwind(AssertUnwindSafe(story)).unwrap_or_else(|_| {
            let panicked = vec!["it panicked".to_owned()];
            (panicked, 0, Counts::default())
        });
    Ended {
        violations,
        history,
        counts,
    }
}

#[test]
fn replicas_keep_every_login_alive_through_crashes_and_faults() {
    if let Some(seed) = variable("SIMULATION_SEED") {
        let ended = run(seed, true);
        assert!(ended.violations.is_empty(), "{:#?}", ended.violations);
        return;
    }
    let first = variable("SIMULATION_FIRST").unwrap_or(0);
    let seeds = variable("SIMULATION_SEEDS").unwrap_or(1_000);
    let (next, total) = (AtomicU64::new(first), Mutex::new(Counts::default()));
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    let ended = run(seed, false);
                    total.lock().unwrap().add(ended.counts);
                    if !ended.violations.is_empty() {
                        failed.lock().unwrap().push((seed, ended.violations));
                    }
                }
            });
        }
    });

    let (total, failed) = (total.into_inner().unwrap(), failed.into_inner().unwrap());
    println!("{seeds} seeds from {first}: {total:?}");
    for (seed, violations) in failed.iter().take(5) {
        println!("seed {seed}: {violations:#?}");
    }
    if let Some((seed, _)) = failed.first() {
        panic!(
            "{} of {seeds} seeds broke a rule: see one again with SIMULATION_SEED={seed}",
            failed.len()
        );
    }
    // That nothing was broken says little if nothing happened.
    let rate = |count: usize| count as u64 >= seeds;
    assert!(rate(total.refreshes) && rate(total.served) && rate(total.crashes));
    assert!(rate(total.unavailable) && total.refused > 0);
    assert!(total.resent > 0 && total.lost > 0 && total.recovered > 0);
    assert!(total.ended > 0);
}

#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in 0..20 {
        let (one, two) = (run(seed, false), run(seed, false));
        assert_eq!(one.history, two.history, "seed {seed}");
        assert_ne!(one.history, run(seed + 1, false).history);
    }
}

#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}
