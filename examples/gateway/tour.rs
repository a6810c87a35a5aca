//! The tour: what a client lives through, and what happened upstream meanwhile.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use reqwest::Client;
use reqwest::StatusCode;
use reqwest::header::WWW_AUTHENTICATE;
use serde_json::Value;
use serde_json::json;

use crate::DEMO_LIFETIME;
use crate::Demo;
use crate::Running;
use crate::environment::Invalid;
use crate::provider::Counts;
use crate::settings::Settings;

/// Takes the tour. `false` if anything was not as promised.
pub(crate) async fn take() -> Result<bool, Box<dyn Error>> {
    let settings = Settings::from_env()?;
    if settings.upstream.is_some() {
        return Err(Invalid::new("GATEWAY_UPSTREAM", "must not be set for the demo").into());
    }
    // A port of its own: a gateway may be running.
    let mut running = Running::start(settings, SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let demo = running.demo.take().ok_or("the demo did not start")?;
    let issued = demo.log_in(&running.regrant).await?;
    println!(
        "gateway at {}, upstream access tokens live {} s\n",
        running.public_url,
        DEMO_LIFETIME.as_secs()
    );
    let mut tour = Tour {
        http: Client::builder().no_proxy().build()?,
        url: format!("http://{}", running.address),
        demo,
        access: issued.access_token.expose().to_owned(),
        refresh: issued.refresh_token.expose().to_owned(),
        is_as_promised: true,
        before: (Counts::default(), 0),
        step: 0,
    };
    tokio::select! {
        ended = running.until_terminated() => ended?,
        taken = tour.walk() => taken?,
    }

    println!(
        "\n{}",
        if tour.is_as_promised {
            "all as promised"
        } else {
            "NOT as promised: see the lines marked with ✗"
        }
    );
    Ok(tour.is_as_promised)
}

/// The line to paste.
pub(crate) fn curl(url: &str, access: &str) -> String {
    format!(
        "curl -H 'Authorization: Bearer {access}' -H 'Content-Type: application/json' \
         -H 'Accept: application/json, text/event-stream' -d '{}' {url}/mcp",
        call_body()
    )
}

struct Tour {
    http: Client,
    url: String,
    demo: Demo,
    access: String,
    refresh: String,
    is_as_promised: bool,
    /// What provider and upstream had counted before this step.
    before: (Counts, usize),
    step: usize,
}

impl Tour {
    async fn walk(&mut self) -> Result<(), Box<dyn Error>> {
        let logged_in = Instant::now();
        let answer = self.call(&self.access).await?;
        self.tell("call a tool", &answer, answer.is_from(0), 0, 0);

        tokio::time::sleep((DEMO_LIFETIME + MARGIN).saturating_sub(logged_in.elapsed())).await;
        let answer = self.call(&self.access).await?;
        self.tell(
            "the upstream token has expired; call again",
            &answer,
            answer.is_from(1),
            1,
            0,
        );

        tokio::time::sleep(DEMO_LIFETIME + MARGIN).await;
        let calls = (0..PARALLEL).map(|_| self.call(&self.access));
        let answers = futures_util::future::try_join_all(calls).await?;
        let all_good = answers.iter().all(|answer| answer.is_from(2));
        let last = answers.last().ok_or("no answer")?;
        self.tell(
            "it has expired again; 20 calls at once",
            last,
            all_good,
            1,
            0,
        );

        self.demo.provider.revoke_access_tokens();
        let answer = self.call(&self.access).await?;
        self.tell(
            "the provider revoked it early; call again",
            &answer,
            answer.is_from(3),
            1,
            1,
        );

        let old = self.access.clone();
        let rotated = self.rotate().await?;
        let is_new = rotated.status == StatusCode::OK
            && rotated
                .text("access_token")
                .is_some_and(|token| token != self.access)
            && rotated
                .text("refresh_token")
                .is_some_and(|token| token != self.refresh);
        self.tell("rotate the gateway's pair", &rotated, is_new, 0, 0);

        let repeated = self.rotate().await?;
        let is_same = repeated.body == rotated.body
            || ["access_token", "refresh_token"]
                .iter()
                .all(|name| repeated.text(name) == rotated.text(name));
        self.tell(
            "the answer got lost; ask again, same pair",
            &repeated,
            is_same,
            0,
            0,
        );

        self.access = rotated.owned("access_token");
        self.refresh = rotated.owned("refresh_token");
        let answer = self.call(&self.access).await?;
        self.tell(
            "call with the new access token",
            &answer,
            answer.is_from(3),
            0,
            0,
        );
        let answer = self.call(&old).await?;
        self.tell(
            "the old one still works until it expires",
            &answer,
            answer.is_from(3),
            0,
            0,
        );

        let form = format!("token={}", self.refresh);
        let answer = self.post("/oauth/revoke", form).await?;
        self.tell("revoke", &answer, answer.status == StatusCode::OK, 0, 0);

        let answer = self.call(&self.access).await?;
        let is_refused = answer.status == StatusCode::UNAUTHORIZED
            && answer.challenge.contains(r#"error="invalid_token""#);
        self.tell("call again", &answer, is_refused, 0, 0);
        let answer = self.call(&old).await?;
        self.tell(
            "and with the older token",
            &answer,
            answer.status == 401,
            0,
            0,
        );
        let answer = self.rotate().await?;
        let is_refused = answer.status == 400 && answer.text("error") == Some("invalid_grant");
        self.tell("rotate again", &answer, is_refused, 0, 0);
        Ok(())
    }

    /// Prints a step and holds it against what was promised: how often the
    /// provider was asked, and how often the upstream refused.
    fn tell(
        &mut self,
        what: &str,
        answer: &Answer,
        is_good: bool,
        refreshes: usize,
        refusals: usize,
    ) {
        let (counts, refused) = (self.demo.provider.counts(), self.demo.upstream.refused());
        let asked = counts.calls - self.before.0.calls;
        let refused_now = refused - self.before.1;
        let is_as_promised = is_good
            && asked == refreshes
            && counts.refreshes - self.before.0.refreshes == refreshes
            && counts.double_spends == 0
            && refused_now == refusals;
        self.before = (counts, refused);
        self.step += 1;
        self.is_as_promised &= is_as_promised;
        println!(
            "{} {:>2}. {what:<45} → {}   (upstream 401s: {refused_now}, provider refreshes: {asked})",
            if is_as_promised { "✓" } else { "✗" },
            self.step,
            answer.summary(),
        );
    }

    async fn call(&self, access: &str) -> Result<Answer, reqwest::Error> {
        let request = self
            .http
            .post(format!("{}/mcp", self.url))
            .bearer_auth(access)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(call_body().to_string());
        Answer::read(request).await
    }

    async fn rotate(&self) -> Result<Answer, reqwest::Error> {
        let form = format!("grant_type=refresh_token&refresh_token={}", self.refresh);
        self.post("/oauth/token", form).await
    }

    async fn post(&self, path: &str, form: String) -> Result<Answer, reqwest::Error> {
        let request = self
            .http
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        Answer::read(request).await
    }
}

struct Answer {
    status: StatusCode,
    challenge: String,
    body: Value,
}

impl Answer {
    async fn read(request: reqwest::RequestBuilder) -> Result<Self, reqwest::Error> {
        let response = request.send().await?;
        let challenge = response.headers().get(WWW_AUTHENTICATE);
        Ok(Self {
            status: response.status(),
            challenge: challenge
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
            body: serde_json::from_slice(&response.bytes().await?).unwrap_or_default(),
        })
    }

    /// Whether the tool was called by this upstream access token.
    fn is_from(&self, number: usize) -> bool {
        self.status == StatusCode::OK
            && self.tool_text() == Some(&format!("ada, by upstream access token {number}"))
    }

    fn tool_text(&self) -> Option<&str> {
        self.body.pointer("/result/content/0/text")?.as_str()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name)?.as_str()
    }

    fn owned(&self, name: &str) -> String {
        self.text(name).unwrap_or_default().to_owned()
    }

    fn summary(&self) -> String {
        let status = self.status.as_u16();
        match (
            self.tool_text(),
            self.text("error"),
            self.text("access_token"),
        ) {
            (Some(text), _, _) => format!("{status} “{text}”"),
            (_, Some(error), _) => format!("{status} {error}"),
            (_, _, Some(_)) => format!("{status} a pair of tokens"),
            _ if self.challenge.is_empty() => status.to_string(),
            _ => format!("{status} {}", self.challenge),
        }
    }
}

fn call_body() -> Value {
    json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "whoami" }
    })
}

const MARGIN: Duration = Duration::from_millis(200);
const PARALLEL: usize = 20;
