//! The example of repo grants, and the example gateway beside it, as processes:
//! against a GitHub outside of them.

mod settings;

use std::process::Stdio;
use std::sync::Arc;

use http::StatusCode;
use http::header::RETRY_AFTER;
use regrant::clock::SystemClock;
use regrant::repo_grants::MintRequest;
use regrant::repo_grants::Minted;
use reqwest::Client;
use rmcp::ServiceExt as _;
use rmcp::model::CallToolRequestParams;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::github::AppKey;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::github::GitHub;
use crate::support::KEYS;
use crate::support::database::Database;
use crate::support::process::GatewayProcess;
use crate::support::process::built;
use crate::support::process::clean;
use crate::support::process::gateway;

/// A GitHub outside, where ada can reach acme/web, and the variables that lead
/// a process there.
struct Outside {
    github: GitHub,
    caller: String,
    variables: Vec<(&'static str, String)>,
}

impl Outside {
    async fn start() -> Self {
        let key = AppKey::shared().unwrap();
        let github = GitHub::new("123456", key.public_der(), Arc::new(SystemClock));
        let granted = [("contents", "write"), ("pull_requests", "write")];
        github.install(INSTALLATION, "acme", &granted);
        github.add_repository(INSTALLATION, 999, "web");
        github.give_access("ada", INSTALLATION, &[999]);
        let variables = vec![
            ("GATEWAY_LISTEN", "127.0.0.1:0".to_owned()),
            ("GITHUB_APP_ID", "123456".to_owned()),
            // As it comes out of a file of variables.
            ("GITHUB_PRIVATE_KEY", key.pkcs1_pem().replace('\n', "\\n")),
            ("GITHUB_CLIENT_ID", github.client_id().to_owned()),
            ("GITHUB_API_URL", github.start().await.unwrap()),
        ];
        Self {
            caller: github.log_in("ada").unwrap(),
            github,
            variables,
        }
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        let pairs = self.variables.iter();
        pairs.map(|(name, value)| (*name, value.as_str())).collect()
    }

    async fn example(&self) -> GatewayProcess {
        GatewayProcess::of(example(&self.variables())).await
    }
}

/// The example with nothing but these variables.
fn example(variables: &[(&str, &str)]) -> Command {
    clean(built("examples/repo_grants"), variables)
}

/// What `tools/call` returns to whom this header names.
async fn mint(process: &GatewayProcess, authorization: Option<&str>, arguments: &Value) -> Value {
    let params = json!({ "name": "MINT_REPO_TOKEN", "arguments": arguments });
    let answer = call(process, authorization, "tools/call", &params).await;
    let result = answer["result"].clone();
    // The same in both forms.
    let text = result["content"][0]["text"].as_str().unwrap();
    let same: Value = serde_json::from_str(text).unwrap();
    assert_eq!(result["structuredContent"], same, "{answer}");
    assert!(result["isError"].is_boolean(), "{answer}");
    result
}

async fn call(
    process: &GatewayProcess,
    authorization: Option<&str>,
    method: &str,
    params: &Value,
) -> Value {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    let mut request = mcp(process, &body);
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let answer = request.send().await.unwrap();
    answer.json().await.unwrap()
}

fn mcp(process: &GatewayProcess, body: &Value) -> reqwest::RequestBuilder {
    Client::new()
        .post(format!("{}/mcp", process.url))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(body.to_string())
}

async fn redeem(process: &GatewayProcess, refresh: &str) -> (StatusCode, Value) {
    let form = format!("grant_type=refresh_token&refresh_token={refresh}");
    post(process, "/repo-grant/token", form).await
}

async fn post(process: &GatewayProcess, path: &str, form: String) -> (StatusCode, Value) {
    let request = Client::new().post(format!("{}{path}", process.url));
    let media = "application/x-www-form-urlencoded";
    let request = request.header("content-type", media).body(form);
    let answer = request.send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

fn web() -> Value {
    json!({ "installationId": INSTALLATION, "owner": "acme", "repo": "web" })
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

const INSTALLATION: u64 = 42;

#[tokio::test]
async fn the_tour_goes_as_promised_in_memory_and_on_postgresql() {
    let database = Database::create().await;
    let on_postgresql = [("DATABASE_URL", &*database.url), ("REGRANT_KEYS", KEYS)];
    for variables in [&[][..], &on_postgresql] {
        let mut demo = example(variables);
        demo.arg("demo").stdin(Stdio::null()).kill_on_drop(true);
        let output = demo.output().await.unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{told}{stderr}");
        assert_eq!(told.matches('✓').count(), 18, "{told}");
        assert!(!told.contains('✗'), "{told}");
        assert!(told.contains("20 redemptions at once"));
        for token in ["ghs_", "ghr_", "ghu_"] {
            assert!(!told.contains(token) && !stderr.contains(token), "{token}");
        }
    }
    let client = database.client().await;
    let row = client.query_one("SELECT count(*) FROM grants", &[]).await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 2, "both grants lay there");
}

#[tokio::test]
async fn an_mcp_client_mints_and_the_refresh_token_redeems_until_it_is_revoked() {
    let outside = Outside::start().await;
    let mut command = example(&outside.variables());
    command.stderr(Stdio::piped());
    let mut process = GatewayProcess::of(command).await;
    let config = StreamableHttpClientTransportConfig::with_uri(format!("{}/mcp", process.url))
        .auth_header(outside.caller.clone());
    let transport = StreamableHttpClientTransport::from_config(config);
    let client = ().serve(transport).await.unwrap();

    let tools = client.list_all_tools().await.unwrap();
    let [tool] = &tools[..] else {
        panic!("{tools:?}")
    };
    let tool = serde_json::to_value(tool).unwrap();
    assert_eq!(tool["name"], "MINT_REPO_TOKEN");
    assert_eq!(tool["inputSchema"], MintRequest::input_schema());
    assert_eq!(tool["outputSchema"], Minted::output_schema());

    let mut request = CallToolRequestParams::new("MINT_REPO_TOKEN");
    request.arguments = web().as_object().cloned();
    let result = client.call_tool(request).await.unwrap();
    client.cancel().await.unwrap();
    assert_eq!(result.is_error, Some(false), "{result:?}");
    let minted = result.structured_content.unwrap();
    let members = Minted::output_schema()["required"].clone();
    for member in members.as_array().unwrap() {
        assert!(minted.get(member.as_str().unwrap()).is_some(), "{member}");
    }
    assert!(outside.github.is_live(text(&minted, "token")));
    assert_eq!(text(&minted, "clientId"), outside.github.client_id());
    let endpoint = format!("{}/repo-grant/token", process.url);
    assert_eq!(text(&minted, "tokenEndpoint"), endpoint);

    let refresh = text(&minted, "refreshToken");
    let (status, redeemed) = redeem(&process, refresh).await;
    assert_eq!(status, StatusCode::OK, "{redeemed}");
    assert_eq!(text(&redeemed, "refresh_token"), refresh);
    assert_ne!(redeemed["access_token"], minted["token"]);
    assert!(outside.github.is_live(text(&redeemed, "access_token")));
    // Ada was asked about once, when she asked herself.
    let calls = outside.github.calls_of(Endpoint::Any);
    let hers = |call: &&_| {
        matches!(
            call,
            crate::github::Call {
                caller: Caller::User(_),
                ..
            }
        )
    };
    assert_eq!(calls.iter().filter(hers).count(), 2);

    let revoke = async |token: &str| {
        let form = format!("token={token}");
        post(&process, "/repo-grant/revoke", form).await
    };
    assert_eq!(revoke(refresh).await, (StatusCode::OK, json!({})));
    let (status, answer) = redeem(&process, refresh).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"], "invalid_grant");

    process.signal("TERM");
    assert!(process.child.wait().await.unwrap().success());
    // The tokens of the grant, at their end with the process at the latest.
    assert!(!outside.github.is_live(text(&redeemed, "access_token")));
    let mut said = String::new();
    let mut stderr = process.child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).await.unwrap();
    for secret in [
        &*outside.caller,
        refresh,
        text(&minted, "token"),
        text(&redeemed, "access_token"),
    ] {
        assert!(!said.contains(secret));
    }
}

#[tokio::test]
async fn without_a_bearer_nobody_is_entitled_but_whom_the_operator_named() {
    let mut outside = Outside::start().await;
    let good = format!("bearer {}", outside.caller);
    let basic = "Basic eDp5";
    let refused = |result: &Value| {
        assert_eq!(result["isError"], true, "{result}");
        assert_eq!(result["structuredContent"]["error"], "unauthorized_caller");
        assert!(result["structuredContent"]["message"].is_string());
    };

    let process = outside.example().await;
    for authorization in [None, Some("Bearer "), Some(basic), Some("Bearer ghu_other")] {
        refused(&mint(&process, authorization, &web()).await);
    }
    assert_eq!(outside.github.mints(), 0);
    let minted = mint(&process, Some(&good), &web()).await;
    assert_eq!(minted["isError"], false, "{minted}");

    let token = outside.caller.clone();
    outside.variables.push(("GITHUB_CALLER_TOKEN", token));
    let process = outside.example().await;
    let minted = mint(&process, None, &web()).await;
    assert_eq!(minted["isError"], false, "{minted}");
    // Who says something is who was said, and not the operator's user.
    for authorization in ["Bearer ", basic, "Bearer ghu_other"] {
        refused(&mint(&process, Some(authorization), &web()).await);
    }
    assert_eq!(outside.github.mints(), 2);
}

#[tokio::test]
async fn what_is_not_minted_is_a_tool_error_that_says_why() {
    let outside = Outside::start().await;
    let process = outside.example().await;
    let bearer = format!("Bearer {}", outside.caller);
    let with = |name: &str, value: Value| {
        let mut arguments = web();
        arguments[name] = value;
        arguments
    };
    for (arguments, code) in [
        (json!({}), "invalid_input"),
        (with("owner", json!(1)), "invalid_input"),
        (with("repo", json!("acme/web")), "invalid_input"),
        (with("repositoryId", json!(998)), "invalid_input"),
        (with("repo", json!("vault")), "repo_not_accessible"),
        (with("installationId", json!(43)), "unauthorized_caller"),
        (
            with("permissions", json!({ "secrets": "read" })),
            "permission_denied",
        ),
    ] {
        let result = mint(&process, Some(&bearer), &arguments).await;
        assert_eq!(result["isError"], true, "{arguments}");
        let told = &result["structuredContent"];
        assert_eq!(told["error"], code, "{arguments}");
        assert!(!text(told, "message").is_empty());
        assert!(told.get("retryAfter").is_none());
    }
    assert!(outside.github.calls_of(Endpoint::Mint).is_empty());

    let limited = Fault::answer(StatusCode::TOO_MANY_REQUESTS, "{}").header(RETRY_AFTER, 17);
    outside.github.fail_next(Endpoint::Mint, limited);
    let result = mint(&process, Some(&bearer), &web()).await;
    let told = &result["structuredContent"];
    assert_eq!(told["error"], "upstream_error", "{result}");
    assert_eq!(told["retryAfter"], 17, "{result}");

    let params = json!({ "name": "MINT_EVERYTHING" });
    let answer = call(&process, Some(&bearer), "tools/call", &params).await;
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
}

#[tokio::test]
async fn no_page_and_no_foreign_name_reaches_the_tool() {
    let mut outside = Outside::start().await;
    let public = "https://gateway.example/base".to_owned();
    outside.variables.push(("GATEWAY_PUBLIC_URL", public));
    let mut process = outside.example().await;
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    let cases = [
        ("origin", "https://page.example", StatusCode::FORBIDDEN),
        ("origin", "null", StatusCode::FORBIDDEN),
        ("host", "page.example", StatusCode::FORBIDDEN),
        ("host", "gateway.example", StatusCode::OK),
        ("host", "127.0.0.1:1", StatusCode::OK),
    ];
    for base in ["", "/base"] {
        process.url += base;
        for (name, value, want) in cases {
            let answer = mcp(&process, &body).header(name, value).send().await;
            assert_eq!(answer.unwrap().status(), want, "{base} {name}: {value}");
        }
        let (status, answer) = redeem(&process, "nonsense").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"], "invalid_grant");
    }
}

#[tokio::test]
async fn what_one_process_minted_another_redeems_after_it_has_stopped() {
    let mut outside = Outside::start().await;
    let database = Database::create().await;
    outside.variables.extend([
        ("DATABASE_URL", database.url.clone()),
        ("REGRANT_KEYS", KEYS.to_owned()),
    ]);
    let bearer = format!("Bearer {}", outside.caller);
    let mut first = outside.example().await;
    let minted = mint(&first, Some(&bearer), &web()).await;
    let refresh = text(&minted["structuredContent"], "refreshToken");
    first.signal("TERM");
    assert!(first.child.wait().await.unwrap().success());

    // The gateway serves the same grants.
    let second = outside.example().await;
    let gateway = GatewayProcess::of(gateway(&outside.variables())).await;
    for process in [&second, &gateway] {
        let (status, redeemed) = redeem(process, refresh).await;
        assert_eq!(status, StatusCode::OK, "{redeemed}");
        assert!(outside.github.is_live(text(&redeemed, "access_token")));
    }
    let form = format!("token={refresh}");
    let (status, _) = post(&gateway, "/repo-grant/revoke", form).await;
    assert_eq!(status, StatusCode::OK);
    let (status, answer) = redeem(&second, refresh).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert_eq!(answer["error"], "invalid_grant");
}
