//! Random histories of logins, and a model that says how each step ends: what
//! two replicas do over one store may never differ from it. Issuing, codes,
//! refreshes with tokens of any age, by anybody, with less scope or with more,
//! access tokens of any age, revocations, changes of keys, and time that passes
//! to each deadline and one second before and after.
//!
//! | variable | |
//! |---|---|
//! | `HISTORY_STEPS` | how many steps to take on each store (4,000) |
//! | `HISTORY_SEED` | what is drawn (0) |

#![expect(clippy::print_stdout, reason = "figures are part of the result")]

mod model;
mod moves;
mod nobody;
mod step;
mod world;

use std::cell::RefCell;
use std::thread;

use proptest::strategy::Strategy as _;
use proptest::test_runner::Config;
use proptest::test_runner::RngAlgorithm;
use proptest::test_runner::TestError;
use proptest::test_runner::TestRng;
use proptest::test_runner::TestRunner;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;
use tokio::runtime::Builder;
use tokio::runtime::Runtime;

use self::world::Counts;
use self::world::World;
use crate::support::database::Database;

#[test]
fn no_history_on_the_memory_store_differs_from_the_model() {
    let cores = thread::available_parallelism().unwrap().get();
    walk(cores, MemoryStore::new);
}

#[test]
fn no_history_on_postgres_differs_from_the_model() {
    let runtime = runtime();
    let database = runtime.block_on(Database::create());
    runtime.block_on(database.store());
    // Each waits for the server most of the time.
    walk(CONNECTED, || database.connect());
}

/// Takes the steps in this many threads, each with a store of its own making.
fn walk<S: Store + Clone>(threads: usize, store: impl Fn() -> S + Sync) {
    let steps = variable("HISTORY_STEPS").unwrap_or(4_000);
    let seed = variable("HISTORY_SEED").unwrap_or(0);
    let mut total = Counts::new();
    thread::scope(|scope| {
        let walkers: Vec<_> = (0..threads)
            .map(|thread| {
                let store = &store;
                let seed = seed * 1_000 + thread as u64;
                scope.spawn(move || histories(steps.div_ceil(threads as u64), seed, store))
            })
            .collect();
        for walker in walkers {
            let counts = walker.join().expect("a history differs, see above");
            for (what, count) in counts {
                *total.entry(what).or_default() += count;
            }
        }
    });

    println!("{total:#?}");
    assert!(total["steps"] as u64 >= steps);
    // That nothing differs says little if nothing happened.
    for what in EXPECTED {
        assert!(total.contains_key(what), "never: {what}");
    }
}

/// At least this many steps; panics with the shortest history that fails.
fn histories<S: Store + Clone>(steps: u64, seed: u64, store: impl Fn() -> S) -> Counts {
    let runtime = runtime();
    let store = runtime.block_on(async { store() });
    runtime.block_on(world::register(store.clone()));
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(seed + 1).to_be_bytes());
    let random = TestRng::from_seed(RngAlgorithm::XorShift, &bytes);
    let mut runner = TestRunner::new_with_rng(config, random);

    let counts = RefCell::new(Counts::new());
    let taken = || counts.borrow().get("steps").copied().unwrap_or_default();
    while (taken() as u64) < steps {
        let drawn = step::history().new_tree(&mut runner).unwrap();
        let walked = runner.run_one(drawn, |history| {
            let mut counts = counts.borrow_mut();
            runtime.block_on(World::live(store.clone(), &history, &mut counts))
        });
        match walked {
            Ok(_) => {}
            Err(TestError::Fail(why, history)) => panic!("{why}\n{history:#?}"),
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
    }
    counts.into_inner()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

/// Histories on PostgreSQL at a time.
const CONNECTED: usize = 6;

/// What must happen now and then.
const EXPECTED: [&str; 29] = [
    "Default: rotated",
    "Default: repeated after the grace",
    "Default: repeated in the grace",
    "Default: repeated with another access token",
    "Default: reuse",
    "Default: refused, absolute",
    "Default: refused, ended",
    "Default: refused, idle",
    "Strict: rotated",
    "Strict: reuse",
    "Strict: refused, absolute",
    "Strict: refused, ended",
    "Strict: refused, idle",
    "Sticky: rotated",
    "Sticky: repeated after the grace",
    "Sticky: repeated in the grace",
    "Sticky: repeated with another access token",
    "Sticky: reuse",
    "Sticky: refused, absolute",
    "Sticky: refused, ended",
    "Sticky: refused, idle",
    "access: refused",
    "access: served",
    "access: served in the leeway",
    "access: too narrow",
    "code: redeemed",
    "code: redeemed again",
    "code: refused",
    "code: too late",
];
