//! A server that comes up by its settings and goes down in order.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use regrant::Regrant;
use regrant::health::HealthStatus;
use serde_json::Value;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::environment::Invalid;

pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Invalid> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Invalid::new("GATEWAY_LISTEN", format!("cannot listen: {error}")))
}

/// Serves until SIGTERM or SIGINT, then finishes what is under way. `/healthz` is
/// for readiness probes.
pub(crate) async fn until_terminated(
    listener: TcpListener,
    router: Router,
    regrant: &Regrant,
) -> io::Result<()> {
    let router = router.route("/healthz", get(health).with_state(regrant.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (draining, mut drained) = tokio::sync::watch::channel(false);
    let asked = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        draining.send_replace(true);
    };
    let limit = async move {
        if drained.wait_for(|asked| *asked).await.is_ok() {
            tokio::time::sleep(DRAIN_LIMIT).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        served = axum::serve(listener, router).with_graceful_shutdown(asked) => served?,
        // Streams may stay open for ever.
        () = limit => {}
    }
    regrant.drain(DRAIN_LIMIT).await;
    Ok(())
}

async fn health(State(regrant): State<Regrant>) -> (StatusCode, Json<Value>) {
    let health = regrant.health().await;
    let status = if health.status == HealthStatus::Down {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    let listener = health.listener;
    let said =
        json!({"status": health.status.as_str(), "listener": listener, "why": health.to_string()});
    (status, Json(said))
}

const DRAIN_LIMIT: Duration = Duration::from_secs(10);
