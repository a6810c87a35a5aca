//! What clients do, each with what the model says of it.

use std::time::Duration;

use http::StatusCode;
use proptest::prop_assert;
use proptest::prop_assert_eq;
use regrant::store::Store;

use super::model::Access;
use super::model::End;
use super::model::Outcome;
use super::model::Scope;
use super::nobody::counterfeit;
use super::step::Sender;
use super::step::Token;
use super::world::Checked;
use super::world::VERIFIER;
use super::world::World;
use crate::support::Answer;
use crate::support::ask;
use crate::support::form;
use crate::support::post;
use crate::support::send;

impl<S: Store + Clone> World<'_, S> {
    pub(super) async fn redeem(
        &mut self,
        index: usize,
        at: usize,
        verifies: bool,
        client: Sender,
    ) -> Checked {
        let family = &mut self.families[index];
        let Some((code, text)) = family.code.clone() else {
            return Ok(());
        };
        let client = match client {
            Sender::Owner | Sender::Silent => family.client(),
            Sender::Mallory => "mallory",
        };
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", &text),
            ("code_verifier", if verifies { VERIFIER } else { "wrong" }),
            ("client_id", client),
        ];
        let answer = ask(&self.replicas[at].regrant, form("/oauth/token", &pairs)).await;
        let (rules, is_owner) = (&self.rules, client != "mallory");
        let before = family.grant.clone();
        let want = code.redeem(rules, self.now, &mut family.grant, verifies, is_owner);
        self.count(match (want, before) {
            (Outcome::Pair(_), _) => "code: redeemed",
            (_, Some(_)) if verifies && is_owner => "code: redeemed again",
            _ if verifies && is_owner => "code: too late",
            _ => "code: refused",
        });
        self.answered(index, want, &answer)
    }

    pub(super) async fn refresh(
        &mut self,
        index: usize,
        at: usize,
        token: Token,
        client: Sender,
        scope: Scope,
    ) -> Checked {
        let family = &mut self.families[index];
        let Some(grant) = &mut family.grant else {
            return Ok(());
        };
        let before = grant.clone();
        let (text, generation) = match token {
            Token::Issued(ago) => {
                let generation = grant.generation.saturating_sub(ago);
                let at = usize::try_from(generation).unwrap();
                (family.refresh[at].clone(), generation)
            }
            Token::Counterfeit(ago) => {
                let generation = grant.generation.saturating_add_signed(-ago);
                (counterfeit(family.id, generation, index), generation)
            }
        };
        let is_issued = matches!(token, Token::Issued(_));
        let is_owner = client != Sender::Mallory;
        let want = grant.refresh(
            &self.rules,
            self.now,
            generation,
            is_issued,
            is_owner,
            scope,
        );
        let mut pairs = vec![("grant_type", "refresh_token"), ("refresh_token", &text)];
        pairs.extend(family.named(client));
        pairs.extend(match scope {
            Scope::Whole => None,
            Scope::Narrowed => Some(("scope", "read")),
            Scope::Foreign => Some(("scope", "read admin")),
        });
        let answer = ask(&self.replicas[at].regrant, form("/oauth/token", &pairs)).await;
        let ended = family
            .grant
            .as_ref()
            .is_some_and(|grant| grant.end != before.end);
        let is_in_grace = self.now <= before.rotated_at + self.rules.grace;
        let what = match want {
            Outcome::Pair(access) if generation < before.generation => {
                if access.until == before.access_until && is_in_grace {
                    "repeated in the grace"
                } else if access.until == before.access_until {
                    "repeated after the grace"
                } else {
                    "repeated with another access token"
                }
            }
            Outcome::Pair(_) => "rotated",
            _ if ended => "reuse",
            _ if before.end.is_some() => "refused, ended",
            _ if self.now >= before.created_at + self.rules.absolute => "refused, absolute",
            _ if self.now >= before.used_at + self.rules.idle => "refused, idle",
            Outcome::InvalidGrant | Outcome::InvalidScope => "refused",
        };
        let policy = before.policy;
        self.count(&format!("{policy:?}: {what}"));
        self.answered(index, want, &answer)
    }

    pub(super) async fn access(&mut self, index: usize, at: usize, token: usize) -> Checked {
        let family = &mut self.families[index];
        let (Some(grant), Some((access, text))) = (&mut family.grant, pick(&family.access, token))
        else {
            return Ok(());
        };
        let is_good = grant.access(&self.rules, self.now, &access);
        let replica = &self.replicas[at];
        let answer = send(&replica.gateway, post(&text, "")).await;
        // That the pair is in use is noted off the request's path.
        prop_assert!(replica.regrant.drain(PATIENCE).await);
        let challenge = answer.header("www-authenticate");
        let (what, status, error) = match (is_good, access.is_narrowed) {
            (true, false) if self.now < access.until => ("access: served", 200, ""),
            (true, false) => ("access: served in the leeway", 200, ""),
            // The route wants more scope than this token has.
            (true, true) => ("access: too narrow", 403, "error=\"insufficient_scope\""),
            (false, _) => ("access: refused", 401, "error=\"invalid_token\""),
        };
        prop_assert_eq!(answer.status.as_u16(), status, "{:?}", access);
        prop_assert!(challenge.contains(error), "{}", challenge);
        self.count(what);
        Ok(())
    }

    pub(super) async fn revoke_refresh(
        &mut self,
        index: usize,
        at: usize,
        ago: u64,
        client: Sender,
    ) -> Checked {
        let family = &mut self.families[index];
        let Some(grant) = &mut family.grant else {
            return Ok(());
        };
        let token = usize::try_from(grant.generation.saturating_sub(ago)).unwrap();
        if client != Sender::Mallory {
            grant.end(End::Client);
        }
        let mut pairs = vec![("token", family.refresh[token].as_str())];
        pairs.extend(family.named(client));
        let answer = ask(&self.replicas[at].regrant, form("/oauth/revoke", &pairs)).await;
        prop_assert_eq!(answer.status, StatusCode::OK);
        self.count("revoked by refresh token");
        Ok(())
    }

    pub(super) async fn revoke_access(
        &mut self,
        index: usize,
        at: usize,
        token: usize,
        client: Sender,
    ) -> Checked {
        let family = &mut self.families[index];
        let (Some(grant), Some((access, text))) = (&mut family.grant, pick(&family.access, token))
        else {
            return Ok(());
        };
        if client != Sender::Mallory {
            grant.revoke_access(&access);
        }
        let mut pairs = vec![("token", text.as_str())];
        pairs.extend(family.named(client));
        let answer = ask(&self.replicas[at].regrant, form("/oauth/revoke", &pairs)).await;
        prop_assert_eq!(answer.status, StatusCode::OK);
        self.count("revoked by access token");
        Ok(())
    }

    /// The token endpoint's answer is the one that the model gives.
    fn answered(&mut self, index: usize, want: Outcome, answer: &Answer) -> Checked {
        let error = match want {
            Outcome::Pair(access) => {
                let json = answer.json();
                prop_assert_eq!(answer.status, StatusCode::OK, "{}", json);
                prop_assert_eq!(json["expires_in"].as_u64(), Some(access.until - self.now));
                let scope = if access.is_narrowed {
                    "read"
                } else {
                    "read write"
                };
                prop_assert_eq!(answer.text("scope"), scope);
                let pair = (answer.text("access_token"), answer.text("refresh_token"));
                return self.keep(index, access, pair);
            }
            Outcome::InvalidGrant => "invalid_grant",
            Outcome::InvalidScope => "invalid_scope",
        };
        prop_assert_eq!(
            answer.status,
            StatusCode::BAD_REQUEST,
            "{:?}",
            answer.json()
        );
        prop_assert_eq!(answer.text("error"), error);
        prop_assert!(answer.json().get("access_token").is_none());
        Ok(())
    }

    /// A pair is the one that was given before, byte for byte, or all new.
    pub(super) fn keep(&mut self, index: usize, access: Access, pair: (String, String)) -> Checked {
        let family = &mut self.families[index];
        let generation = usize::try_from(access.generation).unwrap();
        if let Some(known) = family.refresh.get(generation) {
            prop_assert_eq!(known, &pair.1, "another refresh token than before");
        } else {
            prop_assert_eq!(family.refresh.len(), generation);
            prop_assert!(self.seen.insert(pair.1.clone()), "not a new refresh token");
            family.refresh.push(pair.1);
        }
        let known = family.access.iter().find(|(known, _text)| *known == access);
        if let Some((_access, known)) = known {
            prop_assert_eq!(known, &pair.0, "another access token than before");
        } else {
            prop_assert!(self.seen.insert(pair.0.clone()), "not a new access token");
            family.access.push((access, pair.0));
        }
        Ok(())
    }

    /// What the store says of a grant is what the model says.
    pub(super) async fn compare(&self, index: usize) -> Checked {
        let family = &self.families[index];
        let row = self.store.grant(family.id).await.unwrap();
        prop_assert_eq!(row.is_some(), family.grant.is_some());
        let (Some(row), Some(grant)) = (row, &family.grant) else {
            return Ok(());
        };
        prop_assert_eq!(row.generation, grant.generation);
        let reason = row.revoked.map(|(_at, reason)| reason.as_str());
        let want = grant.end.map(|end| match end {
            End::Client => "client",
            End::CodeReuse => "code_reuse",
            End::Reuse => "reuse",
        });
        prop_assert_eq!(reason, want);
        Ok(())
    }
}

/// Counted from the newest.
fn pick(access: &[(Access, String)], token: usize) -> Option<(Access, String)> {
    let newest = access.len().checked_sub(1)?;
    access.get(newest.saturating_sub(token)).cloned()
}

const PATIENCE: Duration = Duration::from_secs(60);
