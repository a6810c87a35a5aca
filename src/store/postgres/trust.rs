//! Which host is tried first, and which connections are not to be used any
//! more.
//!
//! A pool does not say which host a connection was made to. Its age does: all
//! that were made since a host came first were made to that host.

use std::sync::Mutex;
use std::time::Instant;

use tokio::sync::watch;

use crate::sync::lock;

pub(super) struct Trust {
    hosts: usize,
    state: Mutex<State>,
    /// Which one comes first.
    first: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    first: usize,
    /// Since when it comes first, if another one did before.
    since: Option<Instant>,
    /// What was made before is not used any more.
    retired: Option<Instant>,
}

impl Trust {
    pub(super) fn new(hosts: usize) -> Self {
        Self {
            hosts,
            state: Mutex::default(),
            first: watch::Sender::new(0),
        }
    }

    /// All hosts, in the order to try them.
    pub(super) fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, hosts) = (lock(&self.state).first, self.hosts);
        (0..hosts).map(move |offset| (first + offset) % hosts)
    }

    /// Tells of each change of the host that comes first.
    pub(super) fn moves(&self) -> watch::Receiver<usize> {
        self.first.subscribe()
    }

    fn tell(&self, state: &State) {
        self.first
            .send_if_modified(|first| std::mem::replace(first, state.first) != state.first);
    }

    /// Somebody tries this host.
    pub(super) fn attempt(&self, host: usize) -> Attempt<'_> {
        Attempt {
            trust: self,
            host,
            is_connected: false,
        }
    }

    /// A connection made at `made` timed out, or is to a standby: neither those
    /// made with it nor its host are to be relied on.
    pub(super) fn lose(&self, made: Instant) {
        let mut state = lock(&self.state);
        if state.is_retired(made) {
            return;
        }
        match state.since {
            // To a host that has been left since. Those to the present one
            // are not to suffer.
            Some(since) if made < since => state.retired = Some(since),
            _ => {
                state.retired = Some(Instant::now());
                let first = state.first;
                state.leave(first, self.hosts);
            }
        }
        self.tell(&state);
    }

    pub(super) fn is_retired(&self, made: Instant) -> bool {
        lock(&self.state).is_retired(made)
    }
}

impl State {
    fn is_retired(&self, made: Instant) -> bool {
        self.retired.is_some_and(|retired| made < retired)
    }

    /// Lets the next one come first, if this one does.
    fn leave(&mut self, host: usize, hosts: usize) {
        if self.first == host {
            self.put_first((host + 1) % hosts.max(1));
        }
    }

    fn put_first(&mut self, host: usize) {
        if self.first != host {
            self.first = host;
            self.since = Some(Instant::now());
        }
    }
}

/// A handshake with one host. Unless it succeeds another host comes first from
/// then on.
///
/// Cancellation: who gave up has waited for this host, so that counts too.
/// Otherwise callers that wait for less than a handshake may take would never
/// reach the second host.
pub(super) struct Attempt<'a> {
    trust: &'a Trust,
    host: usize,
    is_connected: bool,
}

impl Attempt<'_> {
    pub(super) fn succeeded(mut self) {
        self.is_connected = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.trust.state);
        if self.is_connected {
            state.put_first(self.host);
        } else {
            state.leave(self.host, self.trust.hosts);
        }
        self.trust.tell(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(trust: &Trust) -> Vec<usize> {
        trust.order().collect()
    }

    #[test]
    fn the_last_good_host_comes_first() {
        let trust = Trust::new(3);
        assert_eq!(order(&trust), [0, 1, 2]);
        drop(trust.attempt(0));
        assert_eq!(order(&trust), [1, 2, 0]);
        trust.attempt(2).succeeded();
        assert_eq!(order(&trust), [2, 0, 1]);
        drop(trust.attempt(0));
        assert_eq!(order(&trust), [2, 0, 1], "it was not first");
    }

    #[test]
    fn one_time_out_retires_what_was_made_before_it_and_the_host_once() {
        let trust = Trust::new(2);
        let (old, older) = (Instant::now(), Instant::now());
        trust.lose(old);
        assert!(trust.is_retired(old) && trust.is_retired(older));
        assert_eq!(order(&trust), [1, 0]);
        let young = Instant::now();
        trust.lose(older);
        assert!(!trust.is_retired(young), "the late one tells nothing new");
        assert_eq!(order(&trust), [1, 0]);
        trust.lose(young);
        assert!(trust.is_retired(young));
        assert_eq!(order(&trust), [0, 1]);
    }

    #[test]
    fn a_time_out_at_a_host_that_was_left_does_not_touch_the_present_one() {
        let trust = Trust::new(2);
        let old = Instant::now();
        drop(trust.attempt(0));
        trust.attempt(1).succeeded();
        let young = Instant::now();
        trust.lose(old);
        assert!(trust.is_retired(old) && !trust.is_retired(young));
        assert_eq!(order(&trust), [1, 0]);
    }

    #[test]
    fn a_single_host_is_tried_again() {
        let trust = Trust::new(1);
        drop(trust.attempt(0));
        assert_eq!(order(&trust), [0]);
        let made = Instant::now();
        trust.lose(made);
        assert!(trust.is_retired(made));
        assert_eq!(order(&trust), [0]);
    }
}
