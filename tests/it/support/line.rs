//! A gateway on a bad line to its provider, with one credential that has
//! expired.

use std::time::Duration;
use std::time::SystemTime;

use http::StatusCode;
use regrant::Issued;
use regrant::Regrant;
use regrant::clock::Clock as _;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::store::Credential;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;

use super::HOUR;
use super::Lab;
use super::long;
use super::lossy::Lossy;
use super::post;
use super::send;
use super::short;

/// A gateway whose line to the provider can be cut.
pub(crate) struct Line {
    pub(crate) lab: Lab,
    pub(crate) store: MemoryStore,
    pub(crate) provider: Lossy<OAuth2Provider>,
    pub(crate) regrant: Regrant,
    pub(crate) issued: Issued,
}

impl Line {
    /// With a credential that has expired.
    pub(crate) async fn start() -> Self {
        let lab = Lab::start().await;
        let (store, provider) = (MemoryStore::new(), Lossy::new(lab.oauth2()));
        let builder = lab
            .builder(store.clone())
            .provider("linear", provider.clone());
        let builder = builder.lifetimes(long()).timings(short());
        let regrant = builder.start().await.unwrap();
        let issued = lab.issue(&regrant).await;
        lab.clock.advance(HOUR);
        Self {
            lab,
            store,
            provider,
            regrant,
            issued,
        }
    }

    pub(crate) async fn ask(&self) -> StatusCode {
        let request = post(self.issued.access_token.expose(), "");
        send(&self.lab.gateway(&self.regrant), request).await.status
    }

    pub(crate) async fn row(&self) -> Credential {
        let grant = self.store.grant(self.issued.grant_id).await;
        let id = grant.unwrap().unwrap().credentials[0].id;
        self.store.credential(id).await.unwrap().unwrap()
    }

    /// A process that died with the right to refresh in its hands.
    pub(crate) async fn die_in_mid_refresh(&self) {
        let row = self.row().await;
        let lease = Duration::ZERO;
        let claimed = self.store.claim(row.id, row.generation, [9; 16], lease);
        assert!(claimed.await.unwrap().is_some());
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.lab.clock.now()
    }

    /// Another process sends the refresh token, and is gone with the answer.
    pub(crate) async fn spend_elsewhere(&self) -> String {
        let store = MemoryStore::new();
        let row = self.row().await;
        let grant = self.store.grant(self.issued.grant_id).await;
        store.insert_credential(row).await.unwrap();
        store.insert_grant(grant.unwrap().unwrap()).await.unwrap();
        let builder = self.lab.builder(store).lifetimes(long());
        let elsewhere = builder.start().await.unwrap();
        let request = post(self.issued.access_token.expose(), "");
        let answer = send(&self.lab.gateway(&elsewhere), request).await;
        assert_eq!(answer.status, StatusCode::OK);
        self.lab.seen().pop().unwrap().bearer().to_owned()
    }
}
