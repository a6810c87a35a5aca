//! What an installation token opens, and its end.

use axum::Json;
use axum::extract::Extension;
use axum::extract::Path;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::Uri;
use axum::response::IntoResponse as _;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;

use super::GitHub;
use super::answers::Refusal;
use super::answers::page;
use super::authentication::Caller;
use super::authentication::Presented;
use super::authentication::not_for_apps;

/// <https://docs.github.com/en/rest/apps/installations#revoke-an-installation-access-token>
pub(super) async fn revoke(
    State(github): State<GitHub>,
    Extension(presented): Extension<Presented>,
) -> Result<StatusCode, Refusal> {
    presented.installation()?;
    github.world().revoke(&presented.token);
    Ok(StatusCode::NO_CONTENT)
}

/// <https://docs.github.com/en/rest/apps/installations#list-repositories-accessible-to-the-app-installation>
pub(super) async fn list(
    State(github): State<GitHub>,
    Extension(presented): Extension<Presented>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let id = presented.installation()?;
    let world = github.world();
    let bad = || presented.unauthorized();
    let token = world.token(&presented.token, github.0.clock.now());
    let (token, installation) = (
        token.ok_or_else(bad)?,
        world.installation(id).ok_or_else(bad)?,
    );
    installation.in_force()?;
    let ids = installation.repositories.keys();
    let items: Vec<_> = ids
        .filter(|id| token.covers(**id))
        .filter_map(|id| installation.repository(*id))
        .collect();
    Ok(page(&uri, &headers, "repositories", &items))
}

/// <https://docs.github.com/en/rest/repos/repos#get-a-repository>
pub(super) async fn read(
    State(github): State<GitHub>,
    Extension(presented): Extension<Presented>,
    Path((owner, name)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let repository = github.seen(&presented, &owner, &name, "metadata")?;
    Ok(Json(repository).into_response())
}

/// <https://docs.github.com/en/rest/repos/contents#get-repository-content>. Every
/// path is a file.
pub(super) async fn contents(
    State(github): State<GitHub>,
    Extension(presented): Extension<Presented>,
    Path((owner, name, path)): Path<(String, String, String)>,
) -> Result<Response, Refusal> {
    github.seen(&presented, &owner, &name, "contents")?;
    let text = format!("{path} of {owner}/{name}\n");
    Ok(Json(json!({
        "type": "file",
        "path": path,
        "size": text.len(),
        "encoding": "base64",
        "content": STANDARD.encode(text),
    }))
    .into_response())
}

impl GitHub {
    /// The repository, if the caller may see it. All are private, and who may not
    /// see one is told that there is none.
    fn seen(
        &self,
        presented: &Presented,
        owner: &str,
        name: &str,
        permission: &str,
    ) -> Result<Value, Refusal> {
        let world = self.world();
        let found = world.find(owner, name);
        match &presented.caller {
            Caller::Nobody => Err(Refusal::NOT_FOUND),
            Caller::Stranger => Err(presented.unauthorized()),
            Caller::App | Caller::Forger(_) => Err(not_for_apps()),
            Caller::User(login) => {
                let (installation, id) = found.ok_or(Refusal::NOT_FOUND)?;
                let access = world.access(login, installation);
                let role = access.and_then(|access| access.get(&id));
                let installation = world.installation(installation);
                let seen = role.zip(installation);
                seen.and_then(|(role, installation)| installation.repository_in(id, *role))
                    .ok_or(Refusal::NOT_FOUND)
            }
            Caller::Installation(own) => {
                let installation = world.installation(*own).ok_or(Refusal::NOT_FOUND)?;
                installation.in_force()?;
                let token = world.token(&presented.token, self.0.clock.now());
                let token = token.ok_or_else(|| presented.unauthorized())?;
                let (of, id) = found.ok_or(Refusal::NOT_FOUND)?;
                if of != *own || !token.covers(id) {
                    return Err(Refusal::NOT_FOUND);
                }
                if !token.permissions.contains_key(permission) {
                    return Err(not_for_apps());
                }
                world.repository(of, id).ok_or(Refusal::NOT_FOUND)
            }
        }
    }
}
