//! `regrant keys rotate`

use std::io;
use std::io::IsTerminal as _;
use std::num::NonZeroU32;
use std::process::ExitCode;

use clap::Args;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use regrant::key_rotation::KeyProgress;
use regrant::key_rotation::Pace;
use serde_json::json;

use crate::Outcome;
use crate::deployment::Deployment;
use crate::output;

/// Seal anew, under the first key, what lies under others
///
/// While the gateways serve: each row is one statement, nothing is locked and no
/// request waits. It may be interrupted at any time and run again, and goes on with
/// what is left. No login ends, no token changes and no provider is asked.
///
/// Run it when every gateway has the new key in the first place: one that seals under
/// another key goes on making rows under it.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant keys rotate --rows-per-second 500

Exit status: 0 if nothing is left under other keys, 1 if rows are: `regrant keys status`
says under which."
)]
pub(super) struct Rotate {
    /// Not more than so many rows a second; as many as it can if not given
    #[arg(long, value_name = "N")]
    rows_per_second: Option<NonZeroU32>,
    /// So many rows are read at once
    #[arg(long, value_name = "N")]
    batch: Option<NonZeroU32>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    deployment: Deployment,
}

impl Rotate {
    pub(super) async fn run(&self) -> Outcome {
        let regrant = self.deployment.regrant("none").await?;
        let mut pace = Pace::default();
        if let Some(rows) = self.rows_per_second {
            pace = pace.rows_per_second(rows);
        }
        if let Some(rows) = self.batch {
            pace = pace.batch(rows);
        }
        let mut gauge = Gauge::new();
        let reached = regrant.rotate_keys(pace, |now| gauge.show(now)).await;
        gauge.clear();
        let reached = reached?;

        if self.json {
            output::json(&json!({
                "resealed": reached.resealed,
                "unopened": reached.unopened,
                "remaining": reached.remaining,
            }))?;
        } else {
            output::say(&format!(
                "re-sealed: {}, left under other keys: {}",
                reached.resealed, reached.remaining
            ))?;
        }
        if reached.unopened > 0 {
            output::warn(&format!(
                "{} rows do not open: `regrant keys status` says which key is missing; if none \
                 is, they were changed, and their users must log in again",
                reached.unopened
            ));
        } else if reached.remaining > 0 {
            output::warn("a gateway still seals under another key: change it, and run this again");
        }
        Ok(match reached.remaining {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }
}

/// How far it is: a bar for people, a line now and then for logs.
struct Gauge {
    bar: Option<ProgressBar>,
    said: u64,
}

impl Gauge {
    fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(TEMPLATE);
            let bar = ProgressBar::new(0);
            bar.with_style(style.unwrap_or_else(|_error| ProgressStyle::default_bar()))
        });
        Self { bar, said: 0 }
    }

    fn show(&mut self, now: KeyProgress) {
        if let Some(bar) = &self.bar {
            bar.set_length(now.resealed + now.remaining);
            bar.set_position(now.resealed);
        } else if now.looked_at == 0 || now.looked_at >= self.said + LINE_EVERY {
            self.said = now.looked_at;
            output::warn(&format!(
                "re-sealed {}, {} to go",
                now.resealed, now.remaining
            ));
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

const TEMPLATE: &str = "{bar:40} {pos}/{len} rows, {per_sec}, {eta} left";
const LINE_EVERY: u64 = 10_000;
