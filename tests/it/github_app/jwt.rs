//! How often the App signs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use axum::extract::Request;
use axum::middleware;
use axum::middleware::Next;
use futures_util::future::join_all;
use http::StatusCode;
use http::header::AUTHORIZATION;
use regrant::clock::Clock;
use regrant::clock::ManualClock;

use super::Stage;
use super::message;
use super::refresh;
use super::rocket;
use crate::github::Endpoint;
use crate::support::serve;

#[tokio::test]
async fn many_refreshes_sign_one_jwt() {
    let stage = Stage::start().await;
    let (url, jwts) = recorded(&stage).await;
    // With each look at it a second goes by, so no two JWTs would be the same.
    let app = stage.builder().with_clock(Ticking(stage.clock.clone()));
    let app = app.base_url(url).build().unwrap();

    let scope = rocket();
    for minted in join_all((0..20).map(|_| refresh(&app, &scope))).await {
        minted.unwrap();
    }
    refresh(&app.clone(), &scope).await.unwrap();

    assert_eq!(jwts.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_jwt_is_signed_anew_before_it_expires_and_when_it_was_refused() {
    let stage = Stage::start().await;
    let (url, jwts) = recorded(&stage).await;
    let app = stage.builder().base_url(url).build().unwrap();
    let signed = || jwts.lock().unwrap().len();
    let scope = rocket();
    refresh(&app, &scope).await.unwrap();
    stage.clock.advance(Duration::from_secs(480));
    refresh(&app, &scope).await.unwrap();
    assert_eq!(signed(), 1);
    stage.clock.advance(Duration::from_secs(1));
    refresh(&app, &scope).await.unwrap();
    assert_eq!(signed(), 2);

    stage.clock.advance(Duration::from_secs(1));
    let refused = message(StatusCode::UNAUTHORIZED);
    stage.github.fail_next(Endpoint::Mint, refused);
    refresh(&app, &scope).await.unwrap_err();
    assert_eq!(signed(), 2);
    refresh(&app, &scope).await.unwrap();
    assert_eq!(signed(), 3);
}

/// The same GitHub at another URL, by which it keeps what calls authenticate by.
async fn recorded(stage: &Stage) -> (String, Arc<Mutex<BTreeSet<String>>>) {
    let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let keep = Arc::clone(&seen);
    let record = move |request: Request, next: Next| {
        let value = request.headers()[AUTHORIZATION].to_str().unwrap();
        keep.lock().unwrap().insert(value.to_owned());
        next.run(request)
    };
    let router = stage.github.router().layer(middleware::from_fn(record));
    (serve(router).await, seen)
}

/// A clock that goes on by a second with each look at it.
#[derive(Debug)]
struct Ticking(ManualClock);

impl Clock for Ticking {
    fn now(&self) -> SystemTime {
        self.0.advance(Duration::from_secs(1));
        self.0.now()
    }
}
