//! `regrant completions`

use std::io;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::Outcome;

/// Print what makes a shell complete this command
///
/// Prints a script; installs nothing.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant completions bash > ~/.local/share/bash-completion/completions/regrant
  regrant completions fish > ~/.config/fish/completions/regrant.fish
  regrant completions zsh > ~/.zfunc/_regrant        # with ~/.zfunc in $fpath"
)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run<C: CommandFactory>(&self) -> Outcome {
        // Not straight to stdout: it would panic at a closed pipe.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut C::command(), "regrant", &mut script);
        io::stdout().lock().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
