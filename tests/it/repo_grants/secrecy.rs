//! Canaries: every secret of a repo grant is looked for where none may be.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use regrant::Regrant;
use regrant::repo_grants::MintRequest;
use regrant::secret::PrivateKey;
use regrant::settings::RepoGrantPolicy;
use regrant::store::Store;
use tower::Layer as _;

use super::APP_ID;
use super::CLIENT_ID;
use super::DAY;
use super::INSTALLATION;
use super::World;
use super::mint::recorded;
use super::mint::told;
use super::redeem;
use super::revoke;
use super::web;
use crate::audit::Ledger;
use crate::github::AppKey;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::secrecy::dump;
use crate::secrecy::hex;
use crate::support::HOUR;
use crate::support::always;
use crate::support::database::Database;
use crate::support::flaky::FlakyStore;
use crate::support::forged;
use crate::support::post;
use crate::support::refresh;
use crate::support::secrets::Log;
use crate::support::secrets::assert_absent;
use crate::support::send;

#[tokio::test]
async fn no_secret_of_a_repo_grant_is_in_the_log_an_error_a_debug_or_an_audit_event() {
    let store = FlakyStore::default();
    let mut session = Session::start(store.clone()).await;

    session.live().await;
    session.fail().await;
    store.set_down(true);
    session.refused(&web()).await;
    session.redeem().await;
    store.set_down(false);
    session.end().await;

    session.assert_quiet();
}

#[tokio::test]
async fn no_secret_of_a_repo_grant_is_in_the_database() {
    let database = Database::create().await;
    let mut session = Session::start(database.store().await).await;

    session.live().await;
    let alive = dump(&database).await;
    session.fail().await;
    session.end().await;

    let ended = dump(&database).await;
    let secrets = session.secrets();
    for dump in [alive, ended] {
        assert!(
            dump.contains("INSERT INTO public.grants"),
            "it is all there"
        );
        assert!(dump.contains("INSERT INTO public.credentials"));
        assert_absent(&secrets, &dump, "the database");
        // Bytes are dumped in hexadecimal.
        let hexadecimal: Vec<_> = secrets.iter().map(|secret| hex(secret)).collect();
        assert_absent(&hexadecimal, &dump, "the database");
        // What is in the gateway's own tokens, before the tag.
        let own: Vec<_> = secrets.iter().filter_map(|it| payload(it)).collect();
        assert!(own.len() >= 6, "{}", own.len());
        assert_absent(&own, &dump, "the database");
    }
    session.assert_quiet();
}

/// A gateway that is used, and all that is said meanwhile.
struct Session {
    world: World,
    log: Log,
    ledger: Ledger,
    regrant: Regrant,
    sent: Arc<Mutex<Vec<String>>>,
    secrets: Vec<String>,
    said: Vec<String>,
}

impl Session {
    async fn start(store: impl Store) -> Self {
        let log = Log::capture();
        let (world, sent) = recorded().await;
        let ledger = Ledger::default();
        let key = PrivateKey::new(AppKey::shared().unwrap().pkcs1_pem());
        let builder = world.app();
        let mut said = vec![format!("{key:?} {builder:?} {:?}", world.caller)];
        let app = builder.build().unwrap();
        said.push(format!("{app:?}"));
        let builder = world.bare(store).with_audit(ledger.clone());
        let builder = builder.repo_grants(app, RepoGrantPolicy::new(CLIENT_ID));
        said.push(format!("{builder:?}"));
        let regrant = builder.start().await.unwrap();
        said.push(format!("{regrant:?} {:?}", regrant.repo_grants().unwrap()));
        Self {
            secrets: vec![world.caller.expose().to_owned()],
            world,
            log,
            ledger,
            regrant,
            sent,
            said,
        }
    }

    /// Minted, redeemed, rotated, sent upstream, and told lies.
    async fn live(&mut self) {
        let minted = self.world.mint(&self.regrant).await;
        self.said.push(format!("{minted:?} {minted:#?}"));
        self.secrets.extend([
            minted.refresh_token.expose().to_owned(),
            minted.token.expose().to_owned(),
            minted.proxied.access_token.expose().to_owned(),
            minted.proxied.refresh_token.expose().to_owned(),
        ]);
        let redeemed = self.redeem().await;
        self.secrets.push(redeemed);
        self.world.clock.advance(HOUR / 2);
        let pair = refresh(&self.regrant, minted.proxied.refresh_token.expose()).await;
        self.secrets.push(pair.text("access_token"));
        self.secrets.push(pair.text("refresh_token"));
        let layer = self.regrant.layer("github-app").unwrap();
        self.said.push(format!("{layer:?}"));
        let gateway = layer.layer(always(StatusCode::UNAUTHORIZED));
        let answer = send(&gateway, post(&pair.text("access_token"), "")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        self.said.push(format!("{answer:?} {gateway:?}"));
        let forged = forged(minted.refresh_token.expose());
        for answer in [
            redeem(&self.regrant, &forged).await,
            revoke(&self.regrant, &forged).await,
        ] {
            self.said.push(format!("{answer:?}"));
        }
    }

    /// Each way to fail, with answers that repeat what they were sent.
    async fn fail(&mut self) {
        let caller = self.world.caller.expose().to_owned();
        let denied = web().permission("administration", "write");
        self.refused(&denied).await;
        self.refused(&MintRequest::new(INSTALLATION, "acme", &caller))
            .await;
        self.refused(&MintRequest::new(43, "acme", "web")).await;
        let echo = format!(r#"{{"message":"{caller} {INSTALLATION_TOKEN}"}}"#);
        let answer = |status| Fault::answer(StatusCode::from_u16(status).unwrap(), echo.clone());
        let created = |token: &str| {
            let body = format!(r#"{{"token":{token},"expires_at":null}}"#);
            Fault::answer(StatusCode::CREATED, body)
        };
        let mut faults: Vec<_> = [400, 401, 403, 404, 422, 429, 500, 503].map(answer).into();
        faults.extend([
            // What does not fit into a header, is cut off, or of another type.
            created(&format!(r#""ghs_\n{INSTALLATION_TOKEN}""#)),
            created(&format!(r#""{INSTALLATION_TOKEN}"#)),
            created(&format!(r#"["{INSTALLATION_TOKEN}"]"#)),
            Fault::answer(StatusCode::CREATED, format!(r#""{INSTALLATION_TOKEN}""#)),
        ]);
        self.secrets.push(INSTALLATION_TOKEN.to_owned());
        for endpoint in [
            Endpoint::UserInstallations,
            Endpoint::UserRepositories,
            Endpoint::Mint,
        ] {
            for fault in &faults {
                self.world.github.fail_all(endpoint, fault.clone());
                self.refused(&web()).await;
                self.world.github.heal();
            }
        }
        // Those that do not end the grant.
        for fault in [answer(401), answer(403), answer(429), answer(500)] {
            self.world.github.fail_all(Endpoint::Mint, fault);
            self.redeem().await;
            self.world.github.heal();
            self.world.clock.advance(HOUR);
            let redeemed = self.redeem().await;
            self.secrets.push(redeemed);
        }
    }

    /// Revoked; and another one, whose installation is gone.
    async fn end(&mut self) {
        let answer = revoke(&self.regrant, &self.secrets[1]).await;
        self.said.push(format!("{answer:?}"));
        self.redeem().await;
        let minted = self.world.mint(&self.regrant).await;
        self.secrets.push(minted.refresh_token.expose().to_owned());
        self.secrets.push(minted.token.expose().to_owned());
        self.world.github.uninstall(INSTALLATION);
        let answer = redeem(&self.regrant, minted.refresh_token.expose()).await;
        assert_eq!(answer.status, 400);
        self.said.push(format!("{answer:?}"));
        self.world.clock.advance(HOUR);
        self.regrant.revoke_due().await;
        assert!(self.regrant.drain(DAY).await);
    }

    /// Redeems the first grant. What it got, if it got something; its answer is
    /// to tell nothing else.
    async fn redeem(&mut self) -> String {
        let answer = redeem(&self.regrant, &self.secrets[1]).await;
        let token = answer.text("access_token");
        if token.is_empty() {
            self.said.push(format!("{answer:?}"));
        }
        token
    }

    async fn refused(&mut self, request: &MintRequest) {
        let grants = self.regrant.repo_grants().unwrap();
        let minted = grants.mint(request, Some(&self.world.caller)).await;
        self.said.push(told(&minted.unwrap_err()));
    }

    /// The tokens, whatever was sent to GitHub, and the lines of the key.
    fn secrets(&self) -> Vec<String> {
        let mut secrets = self.secrets.clone();
        let sent = self.sent.lock().unwrap();
        secrets.extend(sent.iter().map(|sent| sent.replace("Bearer ", "")));
        let key = AppKey::shared().unwrap();
        for der in [key.pkcs1_der(), key.pkcs8_der()] {
            let text = STANDARD.encode(der).into_bytes();
            let lines = text.chunks(64).map(String::from_utf8_lossy);
            let lines = lines.filter(|line| line.len() > 20);
            secrets.extend(lines.map(Cow::into_owned));
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort();
        secrets.dedup();
        assert!(secrets.iter().any(|it| it.starts_with("eyJ")), "a JWT");
        assert!(secrets.len() > 60, "{}", secrets.len());
        secrets
    }

    fn assert_quiet(&self) {
        let secrets = self.secrets();
        let log = self.log.text();
        assert!(log.contains("credential refreshed"), "the log was captured");
        assert!(log.contains("TRACE"), "all of it");
        assert_absent(&secrets, &log, "the log");
        let events = format!("{:?}", self.ledger.events());
        assert!(events.contains("GrantRedeemed") && events.contains("GrantRevoked"));
        assert_absent(&secrets, &events, "the audit");
        let said = self.said.concat();
        assert!(said.contains(APP_ID) && said.len() > 10_000);
        assert_absent(&secrets, &said, "an answer, an error or a Debug");
    }
}

/// The bytes of a token of the gateway's, in hexadecimal, without its tag.
fn payload(token: &str) -> Option<String> {
    let prefixes = ["ghr_", "rgat_", "rgrt_"];
    prefixes.iter().find(|prefix| token.starts_with(**prefix))?;
    let (_id, encoded) = token.split_once('.')?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).unwrap();
    let (secret, _tag) = bytes.split_at(bytes.len() - 16);
    let digits = secret.iter().map(|byte| format!("{byte:02x}"));
    Some(digits.collect())
}

/// As GitHub might quote one.
const INSTALLATION_TOKEN: &str = "ghs_canary0123456789abcdefghijklmnopqrstuvwx";
