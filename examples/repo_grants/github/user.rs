//! What a user's own token shows
//! (<https://docs.github.com/en/rest/apps/installations>).

use axum::extract::Extension;
use axum::extract::Path;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::Uri;
use axum::response::Response;

use super::GitHub;
use super::answers::Refusal;
use super::answers::page;
use super::authentication::Presented;

pub(super) async fn installations(
    State(github): State<GitHub>,
    Extension(presented): Extension<Presented>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let login = presented.user()?;
    let items = github.world().installations_of(login, github.0.app.id());
    Ok(page(&uri, &headers, "installations", &items))
}

pub(super) async fn repositories(
    State(github): State<GitHub>,
    Extension(presented): Extension<Presented>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let login = presented.user()?;
    let id = id.parse().map_err(|_error| Refusal::NOT_FOUND)?;
    let world = github.world();
    let seen = world.access(login, id).ok_or(Refusal::NOT_FOUND)?;
    let installation = world.installation(id).ok_or(Refusal::NOT_FOUND)?;
    installation.in_force()?;
    let items: Vec<_> = seen
        .iter()
        .filter_map(|(id, role)| installation.repository_in(*id, *role))
        .collect();
    Ok(page(&uri, &headers, "repositories", &items))
}
