//! What the settings switch on, and which are refused.

use std::process::Stdio;
use std::time::Duration;

use http::StatusCode;
use reqwest::Client;
use tokio::process::Command;

use super::Outside;
use super::example;
use super::redeem;
use crate::support::process::GatewayProcess;
use crate::support::process::gateway;

#[tokio::test]
async fn the_gateway_serves_repo_grants_only_when_it_has_an_app() {
    let mut outside = Outside::start().await;
    let with = GatewayProcess::start(&outside.variables()).await;
    let (status, answer) = redeem(&with, "nonsense").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert_eq!(answer["error"], "invalid_grant");

    outside
        .variables
        .retain(|(name, _)| !name.starts_with("GITHUB_"));
    let without = GatewayProcess::start(&outside.variables()).await;
    for path in ["token", "revoke"] {
        let request = Client::new().post(format!("{}/repo-grant/{path}", without.url));
        let answer = request.send().await.unwrap();
        // As every path that needs a bearer.
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert!(answer.headers().contains_key("www-authenticate"));
    }
}

#[tokio::test]
async fn half_a_configuration_or_a_bad_one_is_refused_by_name() {
    let outside = Outside::start().await;
    let broken = "-----BEGIN RSA PRIVATE KEY-----\ncanary\n-----END RSA PRIVATE KEY-----";
    let cases: [(&str, &str, &str, &[&str]); 8] = [
        // The variable that is changed, to what, which is named, and what is said.
        ("GITHUB_APP_ID", "", "GITHUB_APP_ID", &["is required"]),
        (
            "GITHUB_PRIVATE_KEY",
            "",
            "GITHUB_PRIVATE_KEY",
            &["is required"],
        ),
        ("GITHUB_CLIENT_ID", "", "GITHUB_CLIENT_ID", &["is required"]),
        ("GITHUB_APP_ID", " ", "GITHUB_APP_ID", &["empty"]),
        (
            "GITHUB_PRIVATE_KEY",
            "canary",
            "GITHUB_PRIVATE_KEY",
            &["6 characters", "without a PEM header"],
        ),
        (
            "GITHUB_PRIVATE_KEY",
            broken,
            "GITHUB_PRIVATE_KEY",
            &["68 characters", "with a PEM header"],
        ),
        (
            "GITHUB_API_URL",
            "http://canary.example",
            "GITHUB_API_URL",
            &[],
        ),
        ("DATABASE_URL", "postgres://canary", "REGRANT_KEYS", &[]),
    ];
    let programs: [fn(&[(&str, &str)]) -> Command; 2] = [example, gateway];
    for program in programs {
        for (changed, value, named, said) in cases {
            let mut variables = outside.variables();
            variables.retain(|(name, _)| *name != changed);
            variables.push((changed, value));
            is_refused(program(&variables), named, said).await;
        }
    }
}

#[tokio::test]
async fn one_variable_of_the_app_alone_is_half_a_configuration() {
    let outside = Outside::start().await;
    for (alone, named) in [
        ("GITHUB_APP_ID", "GITHUB_PRIVATE_KEY"),
        ("GITHUB_PRIVATE_KEY", "GITHUB_APP_ID"),
        ("GITHUB_CLIENT_ID", "GITHUB_PRIVATE_KEY"),
        ("GITHUB_API_URL", "GITHUB_PRIVATE_KEY"),
    ] {
        let mut variables = outside.variables();
        variables.retain(|(name, _)| !name.starts_with("GITHUB_") || *name == alone);
        let said = &["is required", alone];
        is_refused(gateway(&variables), named, said).await;
        is_refused(example(&variables), named, said).await;
    }
    let caller = [("GITHUB_CALLER_TOKEN", "canary")];
    is_refused(example(&caller), "GITHUB_APP_ID", &["GITHUB_CALLER_TOKEN"]).await;
}

#[tokio::test]
async fn the_tour_mints_at_no_github_but_its_own() {
    let outside = Outside::start().await;
    let mut demo = example(&outside.variables());
    demo.arg("demo");
    is_refused(demo, "GITHUB_APP_ID", &["must not be set"]).await;
    assert!(outside.github.calls().is_empty());
}

/// Ends with 2 and one line, which names the variable and shows no value.
async fn is_refused(mut command: Command, named: &str, said: &[&str]) {
    command.stdin(Stdio::null()).kill_on_drop(true);
    // What is accepted runs on.
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.expect("it ends by itself").unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{named}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.starts_with(&format!("{named}: ")),
        "{named}: {stderr}"
    );
    for words in said {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    assert!(!stderr.contains("canary"), "{stderr}");
    assert!(output.stdout.is_empty());
}

const PATIENCE: Duration = Duration::from_secs(20);
