//! What can go wrong between GitHub and whoever calls it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use bytes::Bytes;
use tokio::sync::watch;

use super::GitHub;
use super::calls::Endpoint;

impl GitHub {
    /// The next call of this endpoint goes wrong, once. Faults queue up, and come
    /// before the standing one.
    pub(crate) fn fail_next(&self, endpoint: Endpoint, fault: Fault) {
        self.faults().queued.push_back((endpoint, fault));
    }

    /// Every call of this endpoint goes wrong, until [`heal`](Self::heal) or
    /// another standing fault for the same endpoint.
    pub(crate) fn fail_all(&self, endpoint: Endpoint, fault: Fault) {
        let mut faults = self.faults();
        faults.standing.retain(|(other, _)| *other != endpoint);
        faults.standing.push((endpoint, fault));
    }

    /// Keeps every call of this endpoint waiting, until the gate is released.
    pub(crate) fn hold(&self, endpoint: Endpoint) -> Gate {
        let gate = Gate(Arc::new(watch::Sender::new(Held::default())));
        self.fail_all(endpoint, Fault::Hold(gate.clone()));
        gate
    }

    /// Nothing goes wrong any longer. Calls that are held already stay so.
    pub(crate) fn heal(&self) {
        *self.faults() = Faults::default();
    }
}

/// One thing going wrong. The call is recorded all the same.
#[derive(Clone)]
pub(crate) enum Fault {
    /// This answer instead of GitHub's; nothing is done.
    Answer(Answer),
    /// The connection is reset before an answer; nothing is done.
    Reset,
    /// GitHub does what it was asked for, and its answer is lost: the connection
    /// is reset.
    LoseAnswer,
    /// GitHub's own answer, this much later.
    Delay(Duration),
    /// Nothing is done before the gate is released; then GitHub's own answer.
    Hold(Gate),
}

impl Fault {
    /// An answer with this body, said to be JSON.
    pub(crate) fn answer(status: StatusCode, body: impl Into<Bytes>) -> Self {
        let json = HeaderValue::from_static("application/json; charset=utf-8");
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, json);
        Self::Answer(Answer {
            status,
            headers,
            body: body.into(),
        })
    }

    /// Sets a header of an [`answer`](Self::answer), in place of the one that
    /// GitHub would set.
    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        if let Self::Answer(answer) = &mut self {
            answer.headers.insert(name, value.into());
        }
        self
    }
}

/// A fixed answer.
#[derive(Clone)]
pub(crate) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    pub(super) fn to_response(&self) -> Response {
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.status_mut() = self.status;
        response.headers_mut().clone_from(&self.headers);
        response
    }
}

/// Calls wait here; clones are the same one.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<Held>>);

#[derive(Default)]
struct Held {
    waiting: usize,
    is_released: bool,
}

impl Gate {
    /// How many calls wait now; those whose client has gone do not count.
    pub(crate) fn waiting(&self) -> usize {
        self.0.borrow().waiting
    }

    /// Returns when this many calls wait.
    pub(crate) async fn until_waiting(&self, calls: usize) {
        self.until(|held| held.waiting >= calls).await;
    }

    /// Lets through all that wait and all that come.
    pub(crate) fn release(&self) {
        self.0.send_modify(|held| held.is_released = true);
    }

    pub(super) async fn pass(&self) {
        let _waiting = Waiting::new(self);
        self.until(|held| held.is_released).await;
    }

    async fn until(&self, is_so: impl FnMut(&Held) -> bool) {
        // Fails only without a sender, and `self` is one.
        let _never_closed = self.0.subscribe().wait_for(is_so).await.is_ok();
    }
}

/// Counts a call for as long as somebody waits for its answer.
struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn new(gate: &'a Gate) -> Self {
        gate.0.send_modify(|held| held.waiting += 1);
        Self(gate)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|held| held.waiting -= 1);
    }
}

#[derive(Default)]
pub(super) struct Faults {
    queued: VecDeque<(Endpoint, Fault)>,
    standing: Vec<(Endpoint, Fault)>,
}

impl Faults {
    /// The fault of a call of this endpoint.
    pub(super) fn next(&mut self, endpoint: Endpoint) -> Option<Fault> {
        let applies = |(of, _): &(Endpoint, Fault)| *of == endpoint || *of == Endpoint::Any;
        if let Some(index) = self.queued.iter().position(applies) {
            return self.queued.remove(index).map(|(_, fault)| fault);
        }
        let standing = self.standing.iter().rev().find(|fault| applies(fault));
        standing.map(|(_, fault)| fault.clone())
    }
}
