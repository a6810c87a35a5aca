//! The routes by which a test arranges what goes wrong, and sees what did.

use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::Laboratory;

pub(crate) fn router() -> Router<Laboratory> {
    Router::new()
        .route("/log-in", post(log_in))
        .route("/log-out", post(log_out))
        .route("/settings", post(settings))
        .route("/faults", get(show_faults).post(set_faults))
        .route("/release", post(release))
        .route("/revoke-access", post(revoke_access))
        .route("/counts", get(counts))
        .route("/families", get(families))
}

async fn log_in(State(lab): State<Laboratory>, Json(body): Json<Value>) -> Result<Json<Value>, No> {
    let user = text(members(&body, &["user"])?, "user")?;
    let tokens = lab.lock().provider.log_in(user);
    Ok(Json(json!({
        "family": tokens.family,
        "access_token": tokens.access,
        "refresh_token": tokens.refresh,
        "expires_in": tokens.expires_in,
    })))
}

async fn log_out(State(lab): State<Laboratory>, Json(body): Json<Value>) -> Result<(), No> {
    let user = text(members(&body, &["user"])?, "user")?;
    lab.lock().provider.log_out(user);
    Ok(())
}

async fn settings(State(lab): State<Laboratory>, Json(body): Json<Value>) -> Result<(), No> {
    let known = [
        "lifetime",
        "expires_in",
        "ends_previous",
        "revokes_families",
    ];
    let members = members(&body, &known)?;
    let mut state = lab.lock();
    let settings = &mut state.provider.settings;
    for (name, value) in members {
        match name.as_str() {
            "lifetime" => {
                let seconds = value.as_f64().unwrap_or(-1.0);
                settings.lifetime = Duration::try_from_secs_f64(seconds)
                    .map_err(|_out_of_range| No(format!("lifetime: {value}")))?;
            }
            "expires_in" => {
                settings.expires_in = (!value.is_null()).then(|| value.clone());
            }
            "ends_previous" => settings.ends_previous = boolean(value)?,
            _ => settings.revokes_families = boolean(value)?,
        }
    }
    Ok(())
}

async fn set_faults(State(lab): State<Laboratory>, Json(body): Json<Value>) -> Result<(), No> {
    let members = members(&body, &["seed", "chances", "next"])?;
    let mut state = lab.lock();
    for (name, value) in members {
        match name.as_str() {
            "seed" => {
                let seed = value.as_u64();
                state
                    .faults
                    .seed(seed.ok_or_else(|| No(format!("seed: {value}")))?);
            }
            "chances" => state.faults.set_chances(value)?,
            _ => state.faults.append(value)?,
        }
    }
    Ok(())
}

async fn show_faults(State(lab): State<Laboratory>) -> Json<Value> {
    Json(lab.lock().faults.to_json())
}

async fn release(State(lab): State<Laboratory>) {
    lab.release();
}

async fn revoke_access(State(lab): State<Laboratory>, Json(body): Json<Value>) -> Result<(), No> {
    let user = members(&body, &["user"])?.get("user");
    let user = user.and_then(Value::as_str);
    lab.lock().provider.revoke_access(user);
    Ok(())
}

async fn counts(State(lab): State<Laboratory>) -> Json<Value> {
    let state = lab.lock();
    let counts = &state.provider.counts;
    Json(json!({
        "calls": counts.calls,
        "refreshes": counts.refreshes,
        "double_spends": counts.double_spends,
        "invalid_grants": counts.invalid_grants,
        "in_flight": state.in_flight,
        "held": state.held,
        "served": state.served,
        "refused": state.refused,
        "faults": state.faults.happened(),
    }))
}

async fn families(State(lab): State<Laboratory>) -> Json<Value> {
    Json(lab.lock().provider.families())
}

/// A request that nobody understands: a test with a typo must not pass.
struct No(String);

impl From<String> for No {
    fn from(reason: String) -> Self {
        Self(reason)
    }
}

impl IntoResponse for No {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, self.0).into_response()
    }
}

fn members<'a>(body: &'a Value, known: &[&str]) -> Result<&'a Map<String, Value>, No> {
    let members = body
        .as_object()
        .ok_or_else(|| No(format!("{body} is no object")))?;
    match members.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(No(format!("{name} is unknown here"))),
        None => Ok(members),
    }
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<&'a str, No> {
    let value = members.get(name).and_then(Value::as_str);
    value.ok_or_else(|| No(format!("{name} is missing")))
}

fn boolean(value: &Value) -> Result<bool, No> {
    value
        .as_bool()
        .ok_or_else(|| No(format!("{value} is no boolean")))
}
