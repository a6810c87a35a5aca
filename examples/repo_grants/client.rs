//! Whoever uses the server: an MCP client, a sandbox with its refresh token, and
//! `git` with the token at GitHub.

use reqwest::Client;
use reqwest::RequestBuilder;
use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;
use serde_json::Value;
use serde_json::json;

use crate::tool::NAME;
use crate::world::INSTALLATION;
use crate::world::OWNER;
use crate::world::REPOSITORY;

pub(crate) struct Asker {
    http: Client,
    url: String,
    api_url: String,
    /// The user's own token at GitHub.
    caller: String,
}

impl Asker {
    pub(crate) fn new(url: String, api_url: String, caller: String) -> reqwest::Result<Self> {
        Ok(Self {
            http: Client::builder().no_proxy().build()?,
            url,
            api_url,
            caller,
        })
    }

    /// `tools/list`
    pub(crate) async fn tools(&self) -> reqwest::Result<Answer> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
        self.mcp(&body).await
    }

    /// `tools/call`
    pub(crate) async fn mint(&self) -> reqwest::Result<Answer> {
        self.mcp(&mint_body()).await
    }

    pub(crate) async fn redeem(&self, refresh: &str) -> reqwest::Result<Answer> {
        let form = format!("grant_type=refresh_token&refresh_token={refresh}");
        self.post("/repo-grant/token", form).await
    }

    pub(crate) async fn revoke(&self, refresh: &str) -> reqwest::Result<Answer> {
        self.post("/repo-grant/revoke", format!("token={refresh}"))
            .await
    }

    /// What GitHub says of a repository to whom this token is of.
    pub(crate) async fn read(&self, repository: &str, token: &str) -> reqwest::Result<Answer> {
        let url = format!("{}/repos/{OWNER}/{repository}", self.api_url);
        let request = self.http.get(url).bearer_auth(token);
        Answer::read(request.header("user-agent", "tour")).await
    }

    async fn mcp(&self, body: &Value) -> reqwest::Result<Answer> {
        let request = self
            .http
            .post(format!("{}/mcp", self.url))
            .bearer_auth(&self.caller)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(body.to_string());
        Answer::read(request).await
    }

    async fn post(&self, path: &str, form: String) -> reqwest::Result<Answer> {
        let request = self
            .http
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        Answer::read(request).await
    }
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) says_when: bool,
    pub(crate) body: Value,
}

impl Answer {
    async fn read(request: RequestBuilder) -> reqwest::Result<Self> {
        let response = request.send().await?;
        Ok(Self {
            status: response.status(),
            says_when: response.headers().contains_key(RETRY_AFTER),
            body: serde_json::from_slice(&response.bytes().await?).unwrap_or_default(),
        })
    }

    /// The first tool of a list.
    pub(crate) fn tool(&self) -> Option<&Value> {
        self.body.pointer("/result/tools/0")
    }

    /// What a tool returned, if it says the same in both forms.
    pub(crate) fn minted(&self) -> Option<&Value> {
        let minted = self.body.pointer("/result/structuredContent")?;
        let text = self.body.pointer("/result/content/0/text")?.as_str()?;
        let is_error = self.body.pointer("/result/isError") == Some(&Value::Bool(true));
        let same: Value = serde_json::from_str(text).ok()?;
        (same == *minted && !is_error).then_some(minted)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name)?.as_str()
    }

    /// Whether this is the answer of an OAuth endpoint that failed so.
    pub(crate) fn is(&self, status: u16, error: &str) -> bool {
        self.status == status && self.text("error") == Some(error)
    }

    pub(crate) fn summary(&self) -> String {
        let tool = self.tool().and_then(|tool| tool.get("name")?.as_str());
        let texts = ["error", "full_name"].iter().find_map(|it| self.text(it));
        let failure = self.body.pointer("/result/structuredContent/error");
        let what = tool.or(texts).or_else(|| failure?.as_str());
        let is_token = self.minted().is_some() || self.text("access_token").is_some();
        let status = self.status.as_u16();
        match what.or(is_token.then_some("a token")) {
            Some(what) => format!("{status} {what}"),
            None => status.to_string(),
        }
    }
}

/// The JSON of a call of the tool, for the repository of the demo.
pub(crate) fn mint_body() -> Value {
    json!({
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": NAME,
            "arguments": {
                "installationId": INSTALLATION,
                "owner": OWNER,
                "repo": REPOSITORY,
            },
        },
    })
}
