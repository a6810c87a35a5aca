//! `regrant issue`

use std::error::Error;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use regrant::GrantId;
use regrant::Login;
use regrant::provider::Expiry;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use serde_json::json;

use crate::Outcome;
use crate::deployment::Deployment;
use crate::deployment::seconds;
use crate::output;

/// Store a login and print its first pair of gateway tokens as JSON
///
/// For logins that no flow of the gateway makes: the upstream tokens go in, sealed
/// under the first of `REGRANT_KEYS`, and a new grant comes out. This is the one command
/// that prints tokens; it cannot print them again. The provider is not asked.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  printf '%s\\n' \"$UPSTREAM_ACCESS_TOKEN\" \"$UPSTREAM_REFRESH_TOKEN\" |
    regrant issue --provider linear --subject ada --client-id agent \\
      --access-token-file - --refresh-token-file - --expires-in 3600"
)]
pub(crate) struct Issue {
    /// The provider's name; `default` for the example gateway
    #[arg(long, value_name = "P")]
    provider: String,
    /// The upstream access token (`ps` shows it: prefer the file)
    #[arg(long, value_name = "A", required_unless_present = "access_token_file")]
    access_token: Option<String>,
    /// A file with the upstream access token; `-` reads a line of stdin
    #[arg(long, value_name = "FILE", conflicts_with = "access_token")]
    access_token_file: Option<PathBuf>,
    /// The upstream refresh token (`ps` shows it: prefer the file)
    #[arg(long, value_name = "R")]
    refresh_token: Option<String>,
    /// A file with the upstream refresh token; `-` reads the next line of stdin
    #[arg(long, value_name = "FILE", conflicts_with = "refresh_token")]
    refresh_token_file: Option<PathBuf>,
    /// Seconds until the upstream access token expires; unknown if not given
    #[arg(long, value_parser = seconds, value_name = "S")]
    expires_in: Option<Duration>,
    /// The client that may use the grant; any if not given
    #[arg(long, value_name = "C")]
    client_id: Option<String>,
    /// The user at the provider: logins of one user share one credential. A
    /// name of its own if not given
    #[arg(long, value_name = "U")]
    subject: Option<String>,
    /// The scope, space-separated
    #[arg(long, value_name = "S")]
    scope: Option<String>,
    /// The one resource that the grant is good for; all if not given
    #[arg(long, value_name = "URL")]
    resource: Option<String>,
    #[command(flatten)]
    deployment: Deployment,
}

impl Issue {
    pub(crate) async fn run(self) -> Outcome {
        let mut stdin = Lines::default();
        let access_token = stdin
            .secret(self.access_token, self.access_token_file.as_deref())
            .map_err(|error| format!("--access-token-file: {error}"))?
            .ok_or("--access-token or --access-token-file is required")?;
        let refresh_token = stdin
            .secret(self.refresh_token, self.refresh_token_file.as_deref())
            .map_err(|error| format!("--refresh-token-file: {error}"))?;

        let subject = match self.subject {
            Some(subject) => subject,
            // Not one for all: they would share one credential.
            None => format!("operator-{}", GrantId::random()?),
        };
        let mut login = Login::new(
            &self.provider,
            subject,
            UpstreamAccessToken::new(access_token),
        );
        if let Some(token) = refresh_token {
            login = login.refresh_token(UpstreamRefreshToken::new(token));
        }
        if let Some(after) = self.expires_in {
            login = login.expiry(Expiry::After(after));
        }
        if let Some(client_id) = self.client_id {
            login = login.client_id(client_id);
        }
        if let Some(scope) = self.scope {
            login = login.scope(scope);
        }
        if let Some(resource) = self.resource {
            login = login.resource(resource);
        }
        let regrant = self.deployment.regrant(&self.provider).await?;
        let issued = regrant.issue(login).await?;

        let grant_id = issued.grant_id;
        let issued = json!({
            "grant_id": issued.grant_id.to_string(),
            "access_token": issued.access_token.expose(),
            "refresh_token": issued.refresh_token.expose(),
            "expires_in": issued.expires_in.as_secs(),
            "refresh_expires_in": issued.refresh_expires_in.as_secs(),
        });
        // Also a closed pipe: unlike a list, this cannot be asked for again.
        output::say(&issued.to_string()).map_err(|error| {
            format!("nobody has the tokens of grant {grant_id}: revoke it: {error}")
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Standard input, read once, handed out by lines.
#[derive(Default)]
struct Lines(Option<Vec<String>>);

impl Lines {
    fn secret(
        &mut self,
        argument: Option<String>,
        file: Option<&Path>,
    ) -> Result<Option<String>, Box<dyn Error>> {
        let Some(file) = file else {
            return Ok(argument);
        };
        let text = if file == Path::new("-") {
            self.next()?
        } else {
            // Its name is not said: it may be the token itself.
            std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"))?
        };
        Ok(Some(text.trim().to_owned()))
    }

    fn next(&mut self) -> Result<String, Box<dyn Error>> {
        let lines = match &mut self.0 {
            Some(lines) => lines,
            none => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                // The last one first, so that `pop` gives them in order.
                none.insert(text.lines().rev().map(str::to_owned).collect())
            }
        };
        lines.pop().ok_or_else(|| "stdin has too few lines".into())
    }
}
