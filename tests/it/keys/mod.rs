//! Keys that rotate without ending a login.

mod load;
mod lost;
mod removal;
mod rotation;
mod start;
mod strangers;

use std::time::Duration;

use regrant::Regrant;
use regrant::RegrantBuilder;
use regrant::StartError;
use regrant::clock::Clock as _;
use regrant::key_rotation::Pace;
use regrant::seal::Keyring;
use regrant::settings::Lifetimes;
use regrant::store::Store;

use crate::support::Lab;

/// A gateway with these keys, by their ids; the first one seals.
fn builder(lab: &Lab, store: impl Store, ids: &[&str]) -> RegrantBuilder {
    Regrant::builder("https://gateway.example", store, keyring(ids))
        .provider("linear", lab.oauth2())
        .with_clock(lab.clock.clone())
        .lifetimes(Lifetimes::default().access(MINUTE))
}

async fn replica(lab: &Lab, store: impl Store, ids: &[&str]) -> Regrant {
    builder(lab, store, ids).start().await.unwrap()
}

/// Rotates to `k2`, and waits until `k1` may go.
async fn leave_k1(lab: &Lab, store: impl Store + Clone) {
    let both = replica(lab, store, &["k2", "k1"]).await;
    let done = both.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    assert_eq!((done.unopened, done.remaining), (0, 0));
    lab.clock.advance(2 * MINUTE);
    let status = both.key_status().await.unwrap();
    let now = lab.clock.now();
    assert!(status.iter().all(|key| key.seals || key.is_removable(now)));
}

fn keyring(ids: &[&str]) -> Keyring {
    let keys = ids.iter().map(|id| match *id {
        "k1" => crate::support::KEYS,
        "k2" => "k2:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
        "k3" => "k3:AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=",
        other => panic!("no key {other}"),
    });
    Keyring::parse(&keys.collect::<Vec<_>>().join(",")).unwrap()
}

/// Which key is said to be missing, of how many credentials and grants.
fn missing(error: &StartError) -> (&str, u64, u64) {
    let StartError::KeyMissing {
        id,
        credentials,
        grants,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    (id, *credentials, *grants)
}

const MINUTE: Duration = Duration::from_secs(60);
