//! What is said of arguments that the parser refuses: never a value, which may be
//! a token or hold a password, and ends up in logs.

use std::error::Error as _;
use std::process::ExitCode;

use clap::error::ContextKind;
use clap::error::ContextValue;
use clap::error::Error;
use clap::error::ErrorKind;

use crate::output;

/// Says why, or what was asked for: help and versions come this way too.
pub(crate) fn explain(error: &Error) -> ExitCode {
    if says_no_value(error.kind()) {
        // Whoever closed the pipe has seen enough.
        drop(error.print());
    } else {
        output::complain(&text(error));
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Whether the parser's own words name nothing but what it defines itself. What is
/// not known to do so is taken to repeat a value.
fn says_no_value(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::DisplayVersion
            | ErrorKind::ArgumentConflict
            | ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::NoEquals
            | ErrorKind::TooFewValues
            | ErrorKind::WrongNumberOfValues
            | ErrorKind::InvalidUtf8
    )
}

fn text(error: &Error) -> String {
    let argument = said(error, ContextKind::InvalidArg);
    let what = match (error.kind(), argument) {
        // Here it is what was written.
        (ErrorKind::UnknownArgument, Some(written)) => match flag(&written) {
            Some(flag) => format!("unexpected argument '{flag}'"),
            None => "unexpected argument".to_owned(),
        },
        (ErrorKind::InvalidSubcommand, _) => "unrecognized subcommand".to_owned(),
        (ErrorKind::TooManyValues, Some(argument)) => format!("'{argument}' takes no such value"),
        (_, Some(argument)) => format!("invalid value for '{argument}'"),
        (_, None) => "arguments that cannot be read".to_owned(),
    };
    // Our own parsers say what they expect, and clap's what it may be.
    let expected = error.source().map(|expected| format!(": {expected}"));
    let known = |(kind, what)| Some(format!("\n  [{what}: {}]", said(error, kind)?));
    let known = [
        (ContextKind::ValidValue, "possible values"),
        (ContextKind::SuggestedArg, "there is"),
        (ContextKind::SuggestedSubcommand, "there is"),
    ]
    .map(known);
    let usage = said(error, ContextKind::Usage).map(|usage| format!("\n\n{usage}"));
    let hint = "\n\nFor more information, try '--help'.".to_owned();

    let parts = [Some(what), expected].into_iter().chain(known);
    parts.chain([usage, Some(hint)]).flatten().collect()
}

/// The name of a flag. What has letters that none of ours has is something else.
fn flag(written: &str) -> Option<&str> {
    let (name, _value) = written.split_once('=').unwrap_or((written, ""));
    let letters = name.strip_prefix("--")?;
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    letters.bytes().all(is_name).then_some(name)
}

fn said(error: &Error, kind: ContextKind) -> Option<String> {
    let text = match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(all)) => all.join(", "),
        Some(ContextValue::StyledStr(text)) => text.to_string(),
        Some(_) | None => String::new(),
    };
    (!text.is_empty()).then_some(text)
}
