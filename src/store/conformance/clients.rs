//! Codes and clients.

use std::time::Duration;

use super::held;
use super::noon;
use crate::id::GrantId;
use crate::store::ClientRecord;
use crate::store::Code;
use crate::store::RotationPolicy;
use crate::store::Store;
use crate::store::StoreErrorKind;

pub(super) async fn a_code_is_inserted_once_and_read_back_as_written(store: &dyn Store) {
    let code = Code {
        id: GrantId::random().unwrap(),
        hash: [1; 32],
        challenge: [2; 32],
        client_id: "client".to_owned(),
        confidential: true,
        redirect_uri: Some("http://localhost/callback".to_owned()),
        subject: "subject".to_owned(),
        scope: None,
        resource: Some("https://gateway.example/mcp".to_owned()),
        credentials: vec![held("one"), held("two")],
        expires_at: noon() + Duration::from_secs(60),
    };
    assert!(store.code(code.id).await.unwrap().is_none());

    store.insert_code(code.clone()).await.unwrap();
    let again = store.insert_code(code.clone()).await;
    assert_eq!(again.unwrap_err().kind(), StoreErrorKind::Conflict);
    let read = store.code(code.id).await.unwrap().unwrap();
    assert_eq!(format!("{read:?}"), format!("{code:?}"));

    for held in &code.credentials {
        let early = code.expires_at - Duration::from_secs(1);
        assert!(store.is_awaited(held.id, early).await.unwrap());
        assert!(!store.is_awaited(held.id, code.expires_at).await.unwrap());
    }
    let other = held("one").id;
    assert!(!store.is_awaited(other, noon()).await.unwrap());
}

pub(super) async fn a_registration_takes_the_place_of_the_one_before(store: &dyn Store) {
    let id = GrantId::random().unwrap().to_string();
    assert!(store.client(&id).await.unwrap().is_none());

    let first = ClientRecord {
        id: id.clone(),
        secret_hashes: vec![[1; 32], [2; 32]],
        keys: Some("{}".to_owned()),
        rotation: RotationPolicy::Sticky,
        introspects: true,
        registered_at: noon(),
    };
    let second = ClientRecord {
        secret_hashes: Vec::new(),
        keys: None,
        rotation: RotationPolicy::Strict,
        introspects: false,
        registered_at: noon() + Duration::from_secs(60),
        ..first.clone()
    };
    for client in [first, second] {
        store.register_client(client.clone()).await.unwrap();
        assert_eq!(store.client(&id).await.unwrap(), Some(client));
    }
}
