//! Canaries: every token that was in play is looked for where none may be.

use http::StatusCode;
use regrant::settings::Lifetimes;
use tokio::process::Command;
use tower::ServiceExt as _;

use crate::support::Answer;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::ask;
use crate::support::database::Database;
use crate::support::database::program;
use crate::support::forged;
use crate::support::form;
use crate::support::post;
use crate::support::refresh;
use crate::support::secrets::Log;
use crate::support::secrets::assert_absent;

#[tokio::test]
async fn no_token_is_in_the_database_the_log_an_error_or_a_debug() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let log = Log::capture();
    let builder = lab.builder(database.store().await);
    let lifetimes = Lifetimes::default().access(24 * HOUR);
    let regrant = builder.lifetimes(lifetimes).start().await.unwrap();
    let gateway = lab.gateway(&regrant);
    let mut said = Vec::new();
    let mut canaries = Vec::new();

    // A session of use: served, healed, refreshed, rotated, replayed, refused.
    let login = lab.login();
    said.push(format!("{login:?}"));
    let issued = regrant.issue(login).await.unwrap();
    said.push(format!("{issued:?}{regrant:?}{gateway:?}"));
    let access = issued.access_token.expose().to_owned();
    canaries.push(access.clone());
    canaries.push(issued.refresh_token.expose().to_owned());
    let call = async |access: &str, said: &mut Vec<String>| {
        let response = gateway.clone().oneshot(post(access, "")).await.unwrap();
        said.push(format!(
            "{:?}{:?}",
            response.headers(),
            response.extensions()
        ));
        if let Some(error) = response.extensions().get::<regrant::error::RefreshError>() {
            let mut cause: Option<&dyn std::error::Error> = Some(error);
            while let Some(error) = cause {
                said.push(format!("{error} {error:?}"));
                cause = error.source();
            }
        }
        let answer = Answer::of(response).await;
        said.push(String::from_utf8_lossy(&answer.body).into_owned());
        answer.status
    };
    assert_eq!(call(&access, &mut said).await, StatusCode::OK);
    lab.provider.revoke_access_tokens();
    assert_eq!(call(&access, &mut said).await, StatusCode::OK);
    lab.clock.advance(HOUR);
    assert_eq!(call(&access, &mut said).await, StatusCode::OK);
    for _ in 0..2 {
        let rotated = refresh(&regrant, issued.refresh_token.expose()).await;
        canaries.push(rotated.text("access_token"));
        canaries.push(rotated.text("refresh_token"));
    }
    let forged = forged(&access);
    assert_eq!(call(&forged, &mut said).await, StatusCode::UNAUTHORIZED);
    let refused = refresh(&regrant, &forged.replace("rgat", "rgrt")).await;
    said.push(String::from_utf8_lossy(&refused.body).into_owned());

    // Trouble, in which errors are made.
    lab.clock.advance(HOUR);
    let own_words = r#"{"error":"invalid_client","error_description":"no such thing"}"#;
    lab.faults.answer_next(401, own_words);
    assert_eq!(
        call(&access, &mut said).await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    lab.clock.advance(HOUR);
    lab.provider.log_out();
    assert_eq!(call(&access, &mut said).await, StatusCode::UNAUTHORIZED);
    let pairs = [("token", &*canaries[3])];
    let _revoked = ask(&regrant, form("/oauth/revoke", &pairs)).await;

    // What the upstream and the provider got to see.
    for seen in lab.seen() {
        canaries.push(seen.bearer().to_owned());
        assert!(!format!("{:?}", seen.headers).contains("rgat_"));
    }
    for (_headers, body) in lab.faults.requests() {
        let form = form_urlencoded::parse(body.as_bytes());
        let spent = form.into_owned().find(|(name, _)| name == "refresh_token");
        canaries.push(spent.unwrap().1);
    }
    canaries.sort();
    canaries.dedup();
    assert!(canaries.len() >= 9, "{canaries:?}");

    let dump = dump(&database).await;
    assert!(
        dump.contains("INSERT INTO public.grants"),
        "it is all there"
    );
    assert_absent(&canaries, &dump, "the database");
    // Bytes are dumped in hexadecimal.
    let hexadecimal: Vec<String> = canaries.iter().map(|canary| hex(canary)).collect();
    assert_absent(&hexadecimal, &dump, "the database");
    let log = log.text();
    assert!(log.contains("credential refreshed"), "the log was captured");
    assert_absent(&canaries, &log, "the log");
    let said = said.concat();
    assert!(said.len() > 1_000);
    assert_absent(&canaries, &said, "an answer or a Debug");
}

/// What a thief of backups gets.
pub(crate) async fn dump(database: &Database) -> String {
    let output = Command::new(program("pg_dump"))
        .args(["--inserts", "--dbname", &database.direct])
        .output()
        .await
        .expect("pg_dump: set PG_BIN, or run `tests/run`");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn hex(text: &str) -> String {
    let bytes = text.bytes();
    bytes.fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}
