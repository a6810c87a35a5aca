//! Who may have a token: whom GitHub shows both the installation and the
//! repository.

use http::StatusCode;
use regrant::repo_grants::MintRequest;
use regrant::secret::UpstreamAccessToken;

use super::refused;
use super::with;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::github::Role;
use crate::repo_grants::GRANTED;
use crate::repo_grants::INSTALLATION;
use crate::repo_grants::REPOSITORY;
use crate::repo_grants::World;
use crate::repo_grants::web;

#[tokio::test]
async fn a_caller_without_a_token_is_unauthorized_before_anything_is_asked() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let (empty, blank) = (
        UpstreamAccessToken::new(""),
        UpstreamAccessToken::new(" \t"),
    );
    // Not what fits into no header either.
    let broken = UpstreamAccessToken::new("ghu_\r\nx-evil: 1");
    for caller in [None, Some(&empty), Some(&blank), Some(&broken)] {
        let error = refused(&regrant, &web(), caller).await;
        assert_eq!(error.code(), "unauthorized_caller", "{caller:?}");
    }
    assert!(world.github.calls().is_empty());
}

#[tokio::test]
async fn a_caller_who_does_not_see_the_installation_on_this_account_is_unauthorized() {
    let world = World::start().await;
    // Of the App as well, but not for ada.
    world.github.install(43, "acme", GRANTED);
    world.github.add_repository(43, 430, "web");
    // Ada's own account has it too.
    world.github.install(44, "ada", GRANTED);
    world.github.add_repository(44, 440, "web");
    world.github.give_access("ada", 44, &[440]);
    let stranger = UpstreamAccessToken::new("ghu_nobody");
    let eve = UpstreamAccessToken::new(world.github.log_in("eve").unwrap());
    let regrant = world.regrant().await;
    let ada = &world.caller;
    for (what, request, caller) in [
        ("a token GitHub does not know", web(), &stranger),
        ("a user who sees no installation", web(), &eve),
        (
            "an installation that is not listed",
            MintRequest::new(43, "acme", "web"),
            ada,
        ),
        (
            "an installation that does not exist",
            MintRequest::new(99, "acme", "web"),
            ada,
        ),
        (
            "an installation on another account",
            MintRequest::new(44, "acme", "web"),
            ada,
        ),
        (
            "another account's installation",
            MintRequest::new(INSTALLATION, "ada", "web"),
            ada,
        ),
    ] {
        let error = refused(&regrant, &request, Some(caller)).await;
        assert_eq!(error.code(), "unauthorized_caller", "{what}");
    }
    assert_eq!(world.mints_asked(), 0);
}

#[tokio::test]
async fn a_repository_out_of_the_callers_reach_is_not_accessible() {
    let world = World::start().await;
    // The installation has it, ada does not.
    world.github.add_repository(INSTALLATION, 1_000, "secret");
    let regrant = world.regrant().await;
    for repo in ["secret", "missing", "web2", "we"] {
        let request = MintRequest::new(INSTALLATION, "acme", repo);
        let error = refused(&regrant, &request, Some(&world.caller)).await;
        assert_eq!(error.code(), "repo_not_accessible", "{repo}");
    }
    world.github.give_access("ada", INSTALLATION, &[]);
    let error = refused(&regrant, &web(), Some(&world.caller)).await;
    assert_eq!(error.code(), "repo_not_accessible");
    assert_eq!(world.mints_asked(), 0);
}

/// The App may write where its users may only read.
#[tokio::test]
async fn a_token_writes_nothing_that_its_caller_may_not_write() {
    let read: &[_] = &[("contents", "read"), ("pull_requests", "read")];
    let discuss: &[_] = &[("issues", "write"), ("pull_requests", "write")];
    let write: &[_] = &[("issues", "write"), ("contents", "write")];
    for (role, asked, is_given) in [
        (Role::Read, &[][..], false),
        (Role::Read, read, true),
        (Role::Read, discuss, false),
        (Role::Triage, read, true),
        (Role::Triage, discuss, true),
        (Role::Triage, write, false),
        (Role::Triage, &[], false),
        (Role::Write, write, true),
        (Role::Write, &[], true),
    ] {
        let world = World::start().await;
        let github = &world.github;
        github.give_role("ada", INSTALLATION, &[REPOSITORY], role);
        let regrant = world.regrant().await;
        let grants = regrant.repo_grants().unwrap();

        let minted = grants.mint(&with(asked), Some(&world.caller)).await;

        let denied = minted.err().map(|error| error.code());
        let want = (!is_given).then_some("permission_denied");
        assert_eq!(denied, want, "{role:?} {asked:?}");
        assert_eq!(world.mints_asked(), usize::from(is_given));
    }
}

#[tokio::test]
async fn a_list_that_does_not_say_what_its_caller_may_do_is_no_denial() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let listed = r#"{"repositories":[{"id":999,"name":"web","owner":{"login":"acme"}}]}"#;
    let fault = Fault::answer(StatusCode::OK, listed);
    world.github.fail_all(Endpoint::UserRepositories, fault);

    let minted = world.mint(&regrant).await;

    assert_eq!(minted.permissions["contents"], "write");
    assert!(world.github.is_live(minted.token.expose()));
}

#[tokio::test]
async fn a_repository_of_the_same_name_and_another_owner_is_another() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let listed = r#"{"repositories":[{"id":999,"name":"web","owner":{"login":"eve"}}]}"#;
    let fault = Fault::answer(StatusCode::OK, listed);
    world.github.fail_all(Endpoint::UserRepositories, fault);

    let error = refused(&regrant, &web(), Some(&world.caller)).await;

    assert_eq!(error.code(), "repo_not_accessible");
    assert_eq!(world.mints_asked(), 0);
}

#[tokio::test]
async fn a_refusal_of_a_list_is_the_refusal_of_what_would_be_in_it() {
    for (endpoint, status, want) in [
        (Endpoint::UserInstallations, 401, "unauthorized_caller"),
        (Endpoint::UserInstallations, 403, "unauthorized_caller"),
        (Endpoint::UserInstallations, 404, "unauthorized_caller"),
        (Endpoint::UserRepositories, 403, "repo_not_accessible"),
        (Endpoint::UserRepositories, 404, "repo_not_accessible"),
    ] {
        let world = World::start().await;
        let regrant = world.regrant().await;
        let status = StatusCode::from_u16(status).unwrap();
        let fault = Fault::answer(status, r#"{"message":"no"}"#);
        world.github.fail_all(endpoint, fault);

        let error = refused(&regrant, &web(), Some(&world.caller)).await;

        assert_eq!(error.code(), want, "{endpoint:?} {status}");
        assert_eq!(world.mints_asked(), 0);
    }
}

#[tokio::test]
async fn lists_are_read_to_the_page_that_has_it_and_no_further() {
    let world = World::start().await;
    let github = &world.github;
    // 149 installations before it and 100 behind, as many repositories.
    for id in (1_000..1_149).chain(2_000..2_100) {
        let account = format!("account-{id}");
        github.install(id, &account, GRANTED);
        github.give_access("ada", id, &[]);
    }
    github.install(1_500, "big", GRANTED);
    let ids: Vec<_> = (0..250).collect();
    for id in &ids {
        let name = format!("repository-{id}");
        github.add_repository(1_500, *id, &name);
    }
    github.give_access("ada", 1_500, &ids);
    let regrant = world.regrant().await;
    let grants = regrant.repo_grants().unwrap();
    let asked = |endpoint| github.calls_of(endpoint).len();

    // 42 comes before, so 1500 is the 151st of 251 installations.
    for (repo, pages) in [
        ("repository-0", 1),
        ("repository-99", 1),
        ("REPOSITORY-100", 2),
        ("repository-249", 3),
    ] {
        let before = (
            asked(Endpoint::UserInstallations),
            asked(Endpoint::UserRepositories),
        );
        let request = MintRequest::new(1_500, "big", repo);
        let minted = grants.mint(&request, Some(&world.caller)).await.unwrap();
        assert_eq!(minted.repository.name, repo.to_lowercase());
        assert_eq!(asked(Endpoint::UserInstallations) - before.0, 2);
        assert_eq!(
            asked(Endpoint::UserRepositories) - before.1,
            pages,
            "{repo}"
        );
    }
    let paths: Vec<_> = github.calls().into_iter().map(|call| call.path).collect();
    assert_eq!(paths[0], "/user/installations?per_page=100&page=1");
    assert_eq!(paths[1], "/user/installations?per_page=100&page=2");

    let missing = MintRequest::new(1_500, "big", "missing");
    let error = refused(&regrant, &missing, Some(&world.caller)).await;
    assert_eq!(error.code(), "repo_not_accessible");
    let unlisted = MintRequest::new(500, "big", "repository-0");
    let error = refused(&regrant, &unlisted, Some(&world.caller)).await;
    assert_eq!(error.code(), "unauthorized_caller");
    assert_eq!(world.mints_asked(), 4);
}

#[tokio::test]
async fn a_name_that_has_passed_to_another_repository_is_invalid_input() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let grants = regrant.repo_grants().unwrap();
    let same = web().repository_id(REPOSITORY);
    let minted = grants.mint(&same, Some(&world.caller)).await.unwrap();
    assert_eq!(minted.repository.id, REPOSITORY);
    let asked = world.mints_asked();

    let other = web().repository_id(REPOSITORY + 1);
    let error = refused(&regrant, &other, Some(&world.caller)).await;
    assert_eq!(error.code(), "invalid_input");
    assert_eq!(world.mints_asked(), asked);
}

#[tokio::test]
async fn a_renamed_repository_is_found_by_its_new_name_and_has_the_same_id() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let grants = regrant.repo_grants().unwrap();
    world
        .github
        .rename_repository(INSTALLATION, REPOSITORY, "website");

    let request = MintRequest::new(INSTALLATION, "acme", "website").repository_id(REPOSITORY);
    let minted = grants.mint(&request, Some(&world.caller)).await.unwrap();

    assert_eq!(minted.repository.name, "website");
    assert_eq!(minted.repository.id, REPOSITORY);
    let error = refused(&regrant, &web(), Some(&world.caller)).await;
    assert_eq!(error.code(), "repo_not_accessible");
    assert_eq!(world.mints_asked(), 1);
}
