//! One request with what it takes to send it a second time.

use std::mem;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::CONNECTION;
use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use http_body::Body;
use tower::Service;
use zeroize::Zeroizing;

use crate::authenticate::Authenticated;
use crate::authenticate::By;
use crate::bearer;
use crate::classify::Expired;
use crate::credential;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::grant::GrantContext;
use crate::layer::RefreshLayer;
use crate::replay::Recording;
use crate::replay::ReplayBody;
use crate::response::ResponseBody;
use crate::route::CredentialForm;
use crate::secret::UpstreamAccessToken;

pub(crate) struct Exchange<S, B> {
    /// The ready service until it is called, then the same one for the replay.
    pub(crate) inner: S,
    pub(crate) layer: RefreshLayer,
    /// The request as it is sent, less what is ours to put in.
    head: Parts,
    body: Option<ReplayBody<B>>,
    recording: Option<Recording<B>>,
    /// Whether the gateway said who is calling.
    is_named: bool,
}

impl<S, B> Exchange<S, B>
where
    B: Body<Data = Bytes>,
{
    pub(crate) fn new(inner: S, layer: RefreshLayer, head: Parts, body: B) -> Self {
        let (body, recording) = ReplayBody::recording(body, layer.route.replay_limit);
        Self {
            inner,
            layer,
            head,
            body: Some(body),
            recording: Some(recording),
            is_named: false,
        }
    }

    /// Calls the gateway without a credential, as the request came; only where
    /// Basic is meant for us, it goes no further: what has an empty password may
    /// have a token of ours for its user.
    pub(crate) fn pass<ResBody>(mut self) -> Option<S::Future>
    where
        S: Service<Request<ReplayBody<B>>, Response = Response<ResBody>>,
    {
        let body = self.body.take()?;
        if self.layer.route.accepts_basic() && bearer::is_basic(&self.head.headers) {
            self.head.headers.remove(AUTHORIZATION);
        }
        Some(self.inner.call(Request::from_parts(self.head, body)))
    }

    /// Calls the gateway for the first time.
    pub(crate) fn send<ResBody>(
        &mut self,
        authenticated: &Authenticated,
    ) -> Result<Option<S::Future>, RefreshError>
    where
        S: Service<Request<ReplayBody<B>>, Response = Response<ResBody>>,
    {
        self.is_named = matches!(authenticated.by, By::Name(_));
        // The client's token ends here: it must not reach the upstream, not in
        // the replay either.
        self.head.headers.remove(AUTHORIZATION);
        // Nor may the client have a proxy behind us drop what we put in, by
        // calling it a header of its connection (RFC 9110 §7.6.1).
        if names(&self.head.headers, &self.layer.route.credential_header) {
            self.head.headers.remove(CONNECTION);
        }
        let head = self.head.clone();
        let Some(body) = self.body.take() else {
            return Ok(None);
        };
        let request = self.request(head, body, authenticated)?;
        Ok(Some(self.inner.call(request)))
    }

    /// Makes the request again, with another credential. `None` if its body
    /// cannot be repeated.
    pub(crate) fn replay(
        &mut self,
        authenticated: &Authenticated,
    ) -> Result<Option<Request<ReplayBody<B>>>, RefreshError> {
        let Some(body) = self.recording.take().and_then(Recording::replay) else {
            return Ok(None);
        };
        let (empty, ()) = Request::new(()).into_parts();
        let head = mem::replace(&mut self.head, empty);
        self.request(head, body, authenticated).map(Some)
    }

    fn request(
        &self,
        mut head: Parts,
        body: ReplayBody<B>,
        authenticated: &Authenticated,
    ) -> Result<Request<ReplayBody<B>>, RefreshError> {
        let route = &self.layer.route;
        let snapshot = &authenticated.snapshot;
        let value = match &route.credential_form {
            CredentialForm::Bearer => snapshot.bearer.clone(),
            CredentialForm::After(scheme) => credential::header(scheme, &snapshot.access_token),
            CredentialForm::Basic(user) => basic(user, &snapshot.access_token),
        };
        let value = value.ok_or_else(|| {
            RefreshError::new(
                RefreshErrorKind::Provider,
                "the provider's access token does not fit into a header",
            )
        })?;
        head.headers.insert(&route.credential_header, value);
        head.extensions
            .insert(GrantContext::new(&self.layer.core, authenticated));
        Ok(Request::from_parts(head, body))
    }

    /// Whether this response says that the upstream refused the credential.
    pub(crate) fn is_expired(&self, head: &http::response::Parts) -> bool {
        head.extensions.get::<Expired>().is_some() || self.layer.route.classify.is_expired(head)
    }

    /// Whether a replay failed only because its credential ran out on the way:
    /// that says nothing of the login, so it must not read as its end.
    pub(crate) fn ran_out(&self, head: &http::response::Parts, sent: &Authenticated) -> bool {
        let is_expired = self.is_expired(head);
        let now = self.layer.core.clock.now();
        if is_expired && !sent.snapshot.is_unexpired(now) {
            return true;
        }
        sent.cell.note(sent.snapshot.generation, is_expired);
        false
    }

    /// The gateway's response as the client gets it. The upstream's challenge
    /// would send the client to the wrong authorization server, and so would ours
    /// a client of a gateway that authenticates its users itself.
    pub(crate) fn finish<ResBody>(
        &self,
        mut response: Response<ResBody>,
    ) -> Response<ResponseBody<ResBody>> {
        let challenges = &self.layer.route.challenges;
        let status = response.status();
        let headers = response.headers_mut();
        let had_challenge = headers.remove(WWW_AUTHENTICATE).is_some();
        if self.is_named {
            // The client's own token is good: logging in with the gateway again
            // would not help it.
            if status == StatusCode::UNAUTHORIZED {
                *response.status_mut() = StatusCode::FORBIDDEN;
            }
            return response.map(ResponseBody::of_gateway);
        }
        let ours: Option<&HeaderValue> = match status {
            // RFC 9110 §15.5.2: a 401 must have one.
            StatusCode::UNAUTHORIZED => Some(&challenges.invalid_token),
            StatusCode::FORBIDDEN if had_challenge => Some(&challenges.insufficient_scope),
            _ => None,
        };
        if let Some(challenge) = ours {
            challenges.put(challenge, status, headers);
        }
        response.map(ResponseBody::of_gateway)
    }
}

/// RFC 7617 §2, marked as [`credential::header`] does.
fn basic(user: &str, password: &UpstreamAccessToken) -> Option<HeaderValue> {
    let pair = Zeroizing::new(format!("{user}:{}", password.expose()));
    let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
    let text = Zeroizing::new(format!("Basic {}", *encoded));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether `Connection` lists this header, or cannot be read.
fn names(headers: &HeaderMap, header: &HeaderName) -> bool {
    let lists = |value: &str| {
        value
            .split(',')
            .any(|name| name.trim().eq_ignore_ascii_case(header.as_str()))
    };
    headers
        .get_all(CONNECTION)
        .iter()
        .any(|value| value.to_str().map_or(true, lists))
}
