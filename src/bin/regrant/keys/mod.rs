//! `regrant keys`

mod rotate;
mod status;

use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use clap::Subcommand;

use crate::Outcome;
use crate::output;

/// Make, judge and change sealing keys
///
/// Keys change in this order, while the gateways serve:
///
///   1. keys generate     a new key; give it to every gateway in second place
///   2. move it to the first place of `REGRANT_KEYS`, everywhere
///   3. keys rotate       seals anew what lies under others
///   4. keys status       until it says `remove it` of the old one; then remove it
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant keys generate --id 2026b"
)]
pub(crate) struct Keys {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(Generate),
    Status(status::Status),
    Rotate(rotate::Rotate),
}

/// Print a new random key in the form of `REGRANT_KEYS`
///
/// It is printed and kept nowhere: store it where your secrets are. Without it a
/// backup of the database is worth nothing. Give every key an id of its own; an id is
/// never used for another key again.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant keys generate --id 2026b
  REGRANT_KEYS=\"$OLD,$(regrant keys generate --id 2026b)\"   # the first one seals"
)]
struct Generate {
    /// The key's id: 1 to 32 of A-Z a-z 0-9 _ -
    #[arg(long, default_value = "k1", value_parser = key_id)]
    id: String,
}

impl Keys {
    pub(crate) async fn run(&self) -> Outcome {
        match &self.command {
            Command::Generate(generate) => generate.run(),
            Command::Status(status) => status.run().await,
            Command::Rotate(rotate) => rotate.run().await,
        }
    }
}

impl Generate {
    fn run(&self) -> Outcome {
        let mut key = zeroize::Zeroizing::new([0_u8; 32]);
        aws_lc_rs::rand::fill(key.as_mut_slice())
            .map_err(|_unspecified| "the operating system gave no random bytes")?;
        let line =
            zeroize::Zeroizing::new(format!("{}:{}", self.id, STANDARD.encode(key.as_slice())));
        // Also a closed pipe: it is printed once.
        output::say(&line).map_err(|error| format!("nobody has the key: {error}"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn key_id(text: &str) -> Result<String, String> {
    let is_id = (1..=32).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    is_id
        .then(|| text.to_owned())
        .ok_or_else(|| "must be 1 to 32 of A-Z a-z 0-9 _ -".to_owned())
}
