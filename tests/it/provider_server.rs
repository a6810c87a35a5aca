//! A scripted HTTP server on loopback, which shows what was sent to it.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;

use http::HeaderMap;
use http::HeaderName;
use regrant::provider::Provider as _;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::provider::oauth2::CodeRequest;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::provider::oauth2::OAuth2ProviderBuilder;
use regrant::secret::UpstreamCode;
use regrant::secret::UpstreamRefreshToken;
use serde_json::Value;
use tokio::io::AsyncBufReadExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

/// The server; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Server {
    pub(crate) url: String,
    sent: Arc<Mutex<Vec<Sent>>>,
    replies: Arc<Mutex<VecDeque<Vec<u8>>>>,
    connections: Arc<Mutex<usize>>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            ..Self::default()
        };
        let serving = server.clone();
        tokio::spawn(async move {
            loop {
                let stream = listener.accept().await.unwrap().0;
                *serving.connections.lock().unwrap() += 1;
                let serving = serving.clone();
                tokio::spawn(async move { serving.talk(stream).await });
            }
        });
        server
    }

    /// The next answer.
    pub(crate) fn answer(&self, status: u16, body: &str) {
        self.answer_with(status, "", body);
    }

    /// The next answer, with these header lines.
    pub(crate) fn answer_with(&self, status: u16, headers: &str, body: &str) {
        let length = body.len();
        self.answer_raw(format!(
            "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        ));
    }

    /// The next answer, byte for byte; then the connection is closed.
    pub(crate) fn answer_raw(&self, bytes: impl Into<Vec<u8>>) {
        self.replies.lock().unwrap().push_back(bytes.into());
    }

    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// The one request since the last call.
    pub(crate) fn only(&self) -> Sent {
        let mut sent = std::mem::take(&mut *self.sent.lock().unwrap());
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    pub(crate) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }

    /// Reads one request and answers it. Without an answer it hangs up.
    async fn talk(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let headers: HeaderMap = lines
            .iter()
            .skip(1)
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| {
                let name = HeaderName::try_from(name).unwrap();
                (name, value.parse().unwrap())
            })
            .collect();
        let length = headers
            .get("content-length")
            .map_or(0, |value| value.to_str().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        self.sent.lock().unwrap().push(Sent {
            line: lines.remove(0),
            headers,
            body: String::from_utf8(body).unwrap(),
        });
        let reply = self.replies.lock().unwrap().pop_front();
        if let Some(reply) = reply {
            let _may_hang_up_first = stream.write_all(&reply).await;
            let _may_hang_up_first = stream.shutdown().await;
        }
    }
}

impl Sent {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    /// The parameters of a form, none of them twice.
    pub(crate) fn form(&self) -> BTreeMap<String, String> {
        let form_type = "application/x-www-form-urlencoded";
        assert_eq!(self.header("content-type"), form_type);
        let pairs: Vec<_> = form_urlencoded::parse(self.body.as_bytes())
            .into_owned()
            .collect();
        let form: BTreeMap<_, _> = pairs.iter().cloned().collect();
        assert_eq!(form.len(), pairs.len(), "{}", self.body);
        form
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A preset that speaks to a server of ours, once its true endpoint is known to
/// be this one.
pub(crate) struct Preset {
    server: Server,
    provider: OAuth2Provider,
}

impl Preset {
    /// `revoke` is the path of its revocation endpoint, if the provider has one.
    pub(crate) async fn of(
        builder: OAuth2ProviderBuilder,
        host: &str,
        path: &str,
        revoke: Option<&str>,
    ) -> Self {
        let ends = revoke.map(|revoke| format!("{host}{revoke}"));
        let settings = format!("{builder:?}");
        for setting in [
            format!("token_endpoint: Some(\"{host}{path}\")"),
            "refresh_endpoint: None".to_owned(),
            format!("revocation_endpoint: {ends:?}"),
        ] {
            assert!(settings.contains(&setting), "{settings}");
        }
        let server = Server::start().await;
        let mut builder = builder.token_endpoint(format!("{}{path}", server.url));
        if let Some(revoke) = revoke {
            builder = builder.revocation_endpoint(format!("{}{revoke}", server.url));
        }
        let provider = builder.build().unwrap();
        Self { server, provider }
    }

    pub(crate) async fn refresh(
        &self,
        status: u16,
        body: &str,
    ) -> (Sent, Result<TokenResponse, ProviderError>) {
        self.server.answer(status, body);
        let token = UpstreamRefreshToken::new("rt-1");
        let request = RefreshRequest::new(&token).tenant(Some("acme"));
        let answer = self.provider.refresh(request).await;
        (self.server.only(), answer)
    }

    pub(crate) async fn exchange(&self, body: &str) -> (Sent, TokenResponse) {
        self.server.answer(200, body);
        let code = UpstreamCode::new("code-1");
        let request = CodeRequest::new(&code).tenant(Some("acme"));
        let request = request.redirect_uri(Some("https://gateway.example/cb"));
        let answer = self.provider.exchange_code(request).await.unwrap();
        (self.server.only(), answer)
    }

    pub(crate) async fn revoke(
        &self,
        status: u16,
        body: &str,
    ) -> (Sent, Result<(), ProviderError>) {
        self.server.answer(status, body);
        let token = UpstreamRefreshToken::new("rt-1");
        let request = RevocationRequest::new(&token).tenant(Some("acme"));
        let answer = self.provider.revoke(request).await;
        (self.server.only(), answer)
    }

    pub(crate) async fn classifies(&self, failures: &[(u16, &str, ProviderErrorKind)]) {
        for (status, body, want) in failures {
            let error = self.refresh(*status, body).await.1.unwrap_err();
            assert_eq!(error.kind(), *want, "{status} {body}");
        }
    }
}

/// A form with these parameters.
pub(crate) fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Spends `rt-secret`.
pub(crate) async fn refresh(provider: &OAuth2Provider) -> Result<TokenResponse, ProviderError> {
    let token = UpstreamRefreshToken::new("rt-secret");
    provider.refresh(RefreshRequest::new(&token)).await
}

/// Spends `rt-secret` of this tenant.
pub(crate) async fn refresh_at(
    provider: &OAuth2Provider,
    tenant: Option<&str>,
) -> Result<TokenResponse, ProviderError> {
    let token = UpstreamRefreshToken::new("rt-secret");
    let request = RefreshRequest::new(&token).tenant(tenant);
    provider.refresh(request).await
}

/// A public client at the server's `/token`.
pub(crate) fn builder(server: &Server) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder(format!("{}/token", server.url), "gateway")
}
