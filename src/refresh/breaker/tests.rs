//! When circuits open, for whom, and who finds out that they may close.

use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

use super::*;

struct Bench {
    breakers: Breakers,
    jitter: Jitter,
    now: SystemTime,
    turn: AtomicU8,
}

const THIRD: CredentialId = CredentialId::from_bytes([3; 16]);

impl Bench {
    fn new() -> Self {
        Self {
            breakers: Breakers::default(),
            jitter: Jitter::new(Some(1)),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            turn: AtomicU8::new(0),
        }
    }

    /// Of two credentials, in turns.
    fn fail(&self, error: impl Into<ProviderError>) -> Duration {
        let id = CredentialId::from_bytes([self.turn.fetch_xor(1, Ordering::Relaxed); 16]);
        let permit = self.breakers.admit("p", None, id, self.now).ok().unwrap();
        permit.fails(&error.into(), self.now, &self.jitter)
    }

    fn wait(&self) -> Option<Duration> {
        self.breakers
            .admit("p", None, THIRD, self.now)
            .err()
            .map(|open| open.wait)
    }
}

#[test]
fn it_opens_after_five_failures_in_a_row_and_longer_each_time() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        assert_eq!(bench.fail(ProviderErrorKind::Transient), Duration::ZERO);
    }
    bench
        .breakers
        .admit("p", None, THIRD, bench.now)
        .ok()
        .unwrap()
        .works();
    for _ in 0..4 {
        assert_eq!(bench.fail(ProviderErrorKind::Ambiguous), Duration::ZERO);
    }
    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        let open = bench.fail(ProviderErrorKind::Transient);
        assert!(open >= Duration::from_secs(1) && open <= LONGEST_FAILING_PAUSE);
        assert_eq!(bench.wait(), Some(open));
        assert!(
            bench
                .breakers
                .admit("other", None, THIRD, bench.now)
                .is_ok()
        );
        longest = longest.max(open);
        bench.now += open;
    }
    assert!(longest >= LONGEST_FAILING_PAUSE / 2);
}

#[test]
fn one_attempt_finds_out_for_all() {
    let mut bench = Bench::new();
    bench.fail(ProviderErrorKind::Misconfigured);
    let open = bench.fail(ProviderErrorKind::Misconfigured);
    assert_eq!(open, REFUSED_PAUSE);
    bench.now += open;

    let probe = bench
        .breakers
        .admit("p", None, THIRD, bench.now)
        .ok()
        .unwrap();
    assert_eq!(bench.wait(), Some(Duration::ZERO), "somebody is at it");
    drop(probe);
    let probe = bench
        .breakers
        .admit("p", None, THIRD, bench.now)
        .ok()
        .unwrap();
    probe.works();
    let (one, two) = (
        bench.breakers.admit("p", None, THIRD, bench.now),
        bench.breakers.admit("p", None, THIRD, bench.now),
    );
    assert!(one.is_ok() && two.is_ok());
}

#[test]
fn the_providers_own_wish_counts_up_to_five_minutes() {
    for (asked, want) in [(7, 7), (86_400, 300)] {
        let bench = Bench::new();
        let asked = Some(Duration::from_secs(asked));
        let error = ProviderError::from(ProviderErrorKind::Transient).with_retry_after(asked);
        assert_eq!(bench.fail(error), Duration::from_secs(want));
    }
}

#[test]
fn a_tenant_that_is_away_stops_nobody_else() {
    let bench = Bench::new();
    let admit = |tenant, id| {
        let id = CredentialId::from_bytes([id; 16]);
        bench.breakers.admit("p", Some(tenant), id, bench.now)
    };
    for number in 0..9 {
        if let Ok(permit) = admit("a", number) {
            let error = ProviderErrorKind::Transient.into();
            permit.fails(&error, bench.now, &bench.jitter);
        }
    }
    assert!(admit("a", 9).is_err());
    assert!(admit("b", 9).is_ok());
}

#[test]
fn a_credential_that_fails_alone_opens_nothing_and_who_failed_last_goes_last() {
    let mut bench = Bench::new();
    let fail = |bench: &Bench, id| {
        let admitted = bench.breakers.admit("p", None, id, bench.now);
        let permit = admitted.ok()?;
        let error = ProviderErrorKind::Misconfigured.into();
        Some(permit.fails(&error, bench.now, &bench.jitter))
    };
    for _ in 0..20 {
        assert_eq!(fail(&bench, THIRD), Some(Duration::ZERO));
    }
    let fourth = CredentialId::from_bytes([4; 16]);
    let open = fail(&bench, fourth).unwrap();
    assert!(open >= REFUSED_PAUSE);

    bench.now += open;
    assert_eq!(fail(&bench, fourth), None, "others first");
    let probe = bench.breakers.admit("p", None, THIRD, bench.now);
    assert!(probe.is_ok());
    drop(probe);
    bench.now += open;
    assert!(fail(&bench, fourth).is_some(), "nobody else came");
}

#[test]
fn an_answer_that_was_under_way_when_it_opened_closes_nothing() {
    let bench = Bench::new();
    let early = bench.breakers.admit("p", None, THIRD, bench.now);
    let asked = Some(Duration::from_secs(40));
    let busy = ProviderError::from(ProviderErrorKind::Transient).with_retry_after(asked);
    bench.fail(busy);

    early.ok().unwrap().works();

    assert_eq!(bench.wait(), asked);
}

#[test]
fn a_clock_that_is_set_back_does_not_keep_it_open() {
    let mut bench = Bench::new();
    bench.fail(ProviderErrorKind::Misconfigured);
    bench.fail(ProviderErrorKind::Misconfigured);
    bench.now -= Duration::from_secs(900);
    assert_eq!(bench.wait(), None);
}
