//! The tour: the life of a repo grant, and what GitHub saw meanwhile.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;

use crate::Running;
use crate::client::Answer;
use crate::client::Asker;
use crate::environment::Invalid;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::settings::Settings;
use crate::tool::NAME;
use crate::world::INSTALLATION;
use crate::world::OTHER_REPOSITORY;
use crate::world::REPOSITORY;
use crate::world::World;

/// Takes the tour. `false` if anything was not as promised.
pub(crate) async fn take() -> Result<bool, Box<dyn Error>> {
    let settings = Settings::from_env()?;
    if settings.repo_grants.is_some() {
        let why = "must not be set for the demo: it would mint at the real GitHub";
        return Err(Invalid::new("GITHUB_APP_ID", why).into());
    }
    // A port of its own: a server may be running.
    let mut running = Running::start(settings, SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let world = running.world.take().ok_or("the demo did not start")?;
    println!(
        "MCP server at {}/mcp, a GitHub of our own at {}\n",
        running.public_url, world.api_url
    );
    let url = format!("http://{}", running.address);
    let mut tour = Tour {
        asker: Asker::new(url, world.api_url.clone(), world.caller.clone())?,
        world,
        before: Seen::default(),
        step: 0,
        is_as_promised: true,
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

struct Tour {
    asker: Asker,
    world: World,
    /// What GitHub had seen before this step.
    before: Seen,
    step: usize,
    is_as_promised: bool,
}

/// How often GitHub was called, how many tokens it minted, and how many it was
/// asked to revoke.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Seen {
    calls: usize,
    mints: usize,
    revocations: usize,
}

impl Tour {
    async fn walk(&mut self) -> Result<(), Box<dyn Error>> {
        let grant = self.mint_and_use().await?;
        self.redeem(&grant).await?;
        self.fail(&grant).await?;
        self.revoke(&grant).await?;
        self.uninstall(&grant).await
    }

    async fn mint_and_use(&mut self) -> Result<Minted, Box<dyn Error>> {
        let answer = self.asker.tools().await?;
        let is_listed = answer.tool().is_some_and(|tool| {
            tool.get("name").and_then(Value::as_str) == Some(NAME)
                && tool.pointer("/inputSchema/properties/repo").is_some()
                && tool.pointer("/outputSchema/properties/token").is_some()
        });
        self.tell("list the tools", &answer, is_listed, NOTHING);

        let answer = self.asker.mint().await?;
        let grant = Minted::of(&answer);
        self.tell(
            "mint a token for acme/web",
            &answer,
            grant.is_some(),
            // Which installations and which repositories ada has.
            Seen {
                calls: 3,
                ..ONE_MINT
            },
        );
        let grant = grant.ok_or("nothing was minted")?;

        let answer = self.asker.read(REPOSITORY, &grant.token).await?;
        let is_read = answer.status == StatusCode::OK;
        self.tell("read the repository with it", &answer, is_read, ONE_CALL);
        let answer = self.asker.read(OTHER_REPOSITORY, &grant.token).await?;
        let is_hidden = answer.status == StatusCode::NOT_FOUND;
        self.tell("read another one of acme's", &answer, is_hidden, ONE_CALL);
        Ok(grant)
    }

    async fn redeem(&mut self, grant: &Minted) -> Result<(), Box<dyn Error>> {
        let answer = self.asker.redeem(&grant.refresh).await?;
        let is_new = answer.status == StatusCode::OK
            && answer.text("refresh_token") == Some(&grant.refresh)
            && is_fresh(&answer, &grant.token);
        let known = answer.text("access_token").unwrap_or_default().to_owned();
        self.tell(
            "redeem: a new token, the same refresh token",
            &answer,
            is_new,
            ONE_MINT,
        );

        // Long enough for all of them to have come.
        let fault = Fault::Delay(Duration::from_millis(500));
        self.world.github.fail_all(Endpoint::Mint, fault);
        let redemptions = (0..PARALLEL).map(|_| self.asker.redeem(&grant.refresh));
        let answers = futures_util::future::try_join_all(redemptions).await?;
        self.world.github.heal();
        let last = answers.last().ok_or("no answer")?;
        let is_shared = is_fresh(last, &known)
            && answers
                .iter()
                .all(|answer| answer.text("access_token") == last.text("access_token"));
        self.tell("20 redemptions at once", last, is_shared, ONE_MINT);

        let answer = self.asker.redeem(&forged(&grant.refresh)).await?;
        self.tell(
            "a forged token with the id of the grant",
            &answer,
            answer.is(400, "invalid_grant"),
            NOTHING,
        );
        Ok(())
    }

    async fn fail(&mut self, grant: &Minted) -> Result<(), Box<dyn Error>> {
        let down = Fault::answer(StatusCode::BAD_GATEWAY, "Bad Gateway");
        self.world.github.fail_all(Endpoint::Any, down);
        let answer = self.asker.redeem(&grant.refresh).await?;
        let is_kept = answer.is(503, "temporarily_unavailable") && answer.says_when;
        self.tell("GitHub is down; redeem", &answer, is_kept, ONE_CALL);

        self.world.github.heal();
        let answer = self.asker.redeem(&grant.refresh).await?;
        self.tell(
            "GitHub is back; redeem",
            &answer,
            is_fresh(&answer, &grant.token),
            ONE_MINT,
        );
        Ok(())
    }

    async fn revoke(&mut self, grant: &Minted) -> Result<(), Box<dyn Error>> {
        let answer = self.asker.revoke(&forged(&grant.refresh)).await?;
        let is_told_nothing = answer.status == StatusCode::OK;
        self.tell(
            "revoke with a forged token",
            &answer,
            is_told_nothing,
            NOTHING,
        );
        let answer = self.asker.redeem(&grant.refresh).await?;
        let newest = answer.text("access_token").unwrap_or_default().to_owned();
        let is_alive = is_fresh(&answer, &grant.token);
        self.tell("the grant lives; redeem", &answer, is_alive, ONE_MINT);

        let answer = self.asker.mint().await?;
        let other = Minted::of(&answer);
        let want = Seen {
            calls: 3,
            ..ONE_MINT
        };
        self.tell("mint a second grant", &answer, other.is_some(), want);
        let other = other.ok_or("nothing was minted")?;

        let answer = self.asker.revoke(&other.refresh).await?;
        let is_told = self.is_revoked(&other.token).await;
        let is_revoked = answer.status == StatusCode::OK && is_told;
        let want = Seen {
            revocations: 1,
            ..ONE_CALL
        };
        self.tell("revoke it", &answer, is_revoked, want);
        let answer = self.asker.redeem(&other.refresh).await?;
        let is_gone = answer.is(400, "invalid_grant");
        self.tell("redeem it", &answer, is_gone, NOTHING);
        let answer = self.asker.read(REPOSITORY, &other.token).await?;
        let is_dead = answer.status == StatusCode::UNAUTHORIZED;
        self.tell("its newest token at GitHub", &answer, is_dead, ONE_CALL);
        let answer = self.asker.read(REPOSITORY, &newest).await?;
        let is_alive = answer.status == StatusCode::OK;
        self.tell("that of the first grant", &answer, is_alive, ONE_CALL);
        Ok(())
    }

    async fn uninstall(&mut self, grant: &Minted) -> Result<(), Box<dyn Error>> {
        self.world.github.uninstall(INSTALLATION);
        let answer = self.asker.redeem(&grant.refresh).await?;
        let is_gone = answer.is(400, "invalid_grant");
        self.tell("the App is uninstalled; redeem", &answer, is_gone, ONE_CALL);

        self.world.install();
        let answer = self.asker.redeem(&grant.refresh).await?;
        let is_gone = answer.is(400, "invalid_grant");
        self.tell("it is installed again; redeem", &answer, is_gone, NOTHING);
        Ok(())
    }

    /// Prints a step and holds it against what was promised, of GitHub too.
    fn tell(&mut self, what: &str, answer: &Answer, is_good: bool, promised: Seen) {
        let now = self.seen();
        let seen = Seen {
            calls: now.calls - self.before.calls,
            mints: now.mints - self.before.mints,
            revocations: now.revocations - self.before.revocations,
        };
        let is_as_promised = is_good && seen == promised;
        self.before = now;
        self.step += 1;
        self.is_as_promised &= is_as_promised;
        println!(
            "{} {:>2}. {what:<44} → {:<27} (GitHub calls: {}, mints: {}, revocations: {})",
            if is_as_promised { "✓" } else { "✗" },
            self.step,
            answer.summary(),
            seen.calls,
            seen.mints,
            seen.revocations,
        );
    }

    fn seen(&self) -> Seen {
        let github = &self.world.github;
        Seen {
            calls: github.calls().len(),
            mints: github.mints(),
            revocations: github.calls_of(Endpoint::Revoke).len(),
        }
    }

    /// GitHub is told behind the client's back.
    async fn is_revoked(&self, token: &str) -> bool {
        let told = async {
            while self.world.github.is_live(token) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.is_ok()
    }
}

/// What the tool gave.
struct Minted {
    token: String,
    refresh: String,
}

impl Minted {
    fn of(answer: &Answer) -> Option<Self> {
        let minted = answer.minted()?;
        let text = |name| Some(minted.get(name)?.as_str()?.to_owned());
        Some(Self {
            token: text("token")?,
            refresh: text("refreshToken")?,
        })
    }
}

/// Whether there is a token in it, and not this one.
fn is_fresh(answer: &Answer, known: &str) -> bool {
    let token = answer.text("access_token");
    answer.status == StatusCode::OK && token.is_some_and(|token| token != known)
}

/// The token of the same grant with another secret.
fn forged(refresh: &str) -> String {
    let (grant, secret) = refresh.split_once('.').unwrap_or((refresh, ""));
    let other: String = secret.chars().rev().collect();
    format!("{grant}.{other}")
}

const PARALLEL: usize = 20;
const PATIENCE: Duration = Duration::from_secs(5);
const NOTHING: Seen = Seen {
    calls: 0,
    mints: 0,
    revocations: 0,
};
const ONE_CALL: Seen = Seen {
    calls: 1,
    ..NOTHING
};
const ONE_MINT: Seen = Seen {
    mints: 1,
    ..ONE_CALL
};
