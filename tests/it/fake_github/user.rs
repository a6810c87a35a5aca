//! What users see.

use http::StatusCode;
use serde_json::json;

use super::Answer;
use super::Stage;
use super::answer;
use crate::github::Role;

#[tokio::test]
async fn a_user_sees_the_own_installations_and_repositories_page_by_page() {
    let stage = Stage::start().await;
    let ids: Vec<_> = (1_000..1_120).collect();
    for id in &ids {
        stage.github.install(*id, &format!("org-{id}"), &[]);
        stage.github.give_access("bob", *id, &[]);
        stage.github.add_repository(7, *id, &format!("repo-{id}"));
    }
    stage.github.give_access("bob", 7, &ids);
    let token = stage.github.log_in("bob").unwrap();

    for (path, name, total) in [
        ("/user/installations", "installations", 121),
        ("/user/installations/7/repositories", "repositories", 120),
    ] {
        let page = |query: &str| answer(stage.get(&format!("{path}?{query}"), &token));
        let count = |answer: &Answer| answer.body[name].as_array().unwrap().len();
        let link = |relation: &str, number: usize| {
            let url = &stage.url;
            format!("<{url}{path}?per_page=100&page={number}>; rel=\"{relation}\"")
        };

        let first = page("per_page=1000").await;
        let next = format!("{}, {}", link("next", 2), link("last", 2));
        assert_eq!((count(&first), first.header("link")), (100, &*next));
        assert_eq!(first.body["total_count"], total);
        let second = page("per_page=100&page=2").await;
        let previous = format!("{}, {}", link("prev", 1), link("first", 1));
        assert_eq!(second.header("link"), previous);
        assert_eq!(count(&first) + count(&second), total);
        assert_ne!(first.body[name][0]["id"], second.body[name][0]["id"]);
        assert_eq!(count(&page("per_page=100&page=9").await), 0);
        assert_eq!(count(&page("").await), 30);
    }
}

#[tokio::test]
async fn a_user_sees_nothing_that_is_not_the_users() {
    let stage = Stage::start().await;
    stage.github.install(8, "other", &[]);
    let get = |path: &'static str, token: String| answer(stage.get(path, &token));
    let ada = || stage.user_token.clone();

    let mine = get("/user/installations", ada())
        .await
        .expect(StatusCode::OK);
    let ids: Vec<_> = mine["installations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["id"])
        .collect();
    assert_eq!(ids, [7]);
    let account = &mine["installations"][0]["account"];
    assert_eq!(
        (&account["login"], &account["type"]),
        (&json!("acme"), &json!("Organization"))
    );
    let path = "/user/installations/7/repositories";
    let names = get(path, ada()).await.expect(StatusCode::OK);
    assert_eq!(
        (&names["total_count"], &names["repositories"][0]["id"]),
        (&json!(1), &json!(70))
    );
    let other = get("/user/installations/8/repositories", ada()).await;
    other.expect(StatusCode::NOT_FOUND);
    let hidden = get("/repos/acme/secret", ada()).await;
    hidden.expect(StatusCode::NOT_FOUND);
    get("/repos/acme/rocket", ada())
        .await
        .expect(StatusCode::OK);
}

#[tokio::test]
async fn a_repository_is_listed_with_what_its_user_may_do_there() {
    let stage = Stage::start().await;
    for (role, triage, push) in [
        (Role::Read, false, false),
        (Role::Triage, true, false),
        (Role::Write, true, true),
    ] {
        stage.github.give_role("ada", 7, &[70], role);
        let path = "/user/installations/7/repositories";
        let listed = answer(stage.get(path, &stage.user_token)).await;
        let listed = listed.expect(StatusCode::OK);
        let read = answer(stage.get("/repos/acme/rocket", &stage.user_token)).await;
        let want = json!({
            "admin": false, "maintain": false, "push": push, "triage": triage, "pull": true,
        });
        assert_eq!(listed["repositories"][0]["permissions"], want);
        assert_eq!(read.expect(StatusCode::OK)["permissions"], want);
    }
}
