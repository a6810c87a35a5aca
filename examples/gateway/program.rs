//! What a program does with its arguments: serve, or take the tour.

use std::env;
use std::error::Error;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use crate::environment::failed;

/// Serves without an argument; takes the tour with `demo`, and fails unless all
/// is as promised.
pub(crate) async fn run(
    usage: &str,
    serve: impl AsyncFnOnce() -> Result<(), Box<dyn Error>>,
    tour: impl AsyncFnOnce() -> Result<bool, Box<dyn Error>>,
) -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(tracing::Level::WARN)
        .init();
    let result = match env::args().nth(1).as_deref() {
        None => serve().await,
        Some("demo") => match tour().await {
            Ok(true) => return ExitCode::SUCCESS,
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Some("-h" | "--help") => {
            println!("{usage}");
            return ExitCode::SUCCESS;
        }
        Some(_) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}
