//! Trouble at a provider, in front of its true answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;

use axum::Router;
use axum::body::Body;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::middleware;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use axum::response::Response;
use tokio::sync::watch;

/// What happens to requests before they reach the provider; clones share it.
#[derive(Clone)]
pub(crate) struct Faults {
    scripted: Arc<Mutex<VecDeque<(u16, String)>>>,
    requests: Arc<Mutex<Vec<(HeaderMap, String)>>>,
    gate: watch::Sender<bool>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            scripted: Arc::default(),
            requests: Arc::default(),
            gate: watch::Sender::new(true),
        }
    }
}

impl Faults {
    pub(crate) fn around(&self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self.clone(), fault))
    }

    /// The next answer is this one; the provider does not see the request.
    pub(crate) fn answer_next(&self, status: u16, body: &str) {
        let mut scripted = self.scripted.lock().unwrap();
        scripted.push_back((status, body.to_owned()));
    }

    /// Holds every request until [`release`](Self::release).
    pub(crate) fn hold(&self) {
        self.gate.send_replace(false);
    }

    pub(crate) fn release(&self) {
        self.gate.send_replace(true);
    }

    /// Headers and forms, held ones included.
    pub(crate) fn requests(&self) -> Vec<(HeaderMap, String)> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits until this many requests have arrived.
    pub(crate) async fn arrived(&self, count: usize) {
        let begun = std::time::Instant::now();
        while self.requests.lock().unwrap().len() < count {
            assert!(begun.elapsed().as_secs() < 60, "nobody asks the provider");
            tokio::task::yield_now().await;
        }
    }
}

async fn fault(State(faults): State<Faults>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let text = String::from_utf8_lossy(&body).into_owned();
    faults
        .requests
        .lock()
        .unwrap()
        .push((head.headers.clone(), text));
    faults
        .gate
        .subscribe()
        .wait_for(|open| *open)
        .await
        .unwrap();

    let scripted = faults.scripted.lock().unwrap().pop_front();
    if let Some((status, body)) = scripted {
        return (StatusCode::from_u16(status).unwrap(), body).into_response();
    }
    next.run(Request::from_parts(head, Body::from(body))).await
}
