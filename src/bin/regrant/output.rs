//! What is printed: tables, JSON, times.

use std::error::Error;
use std::io;
use std::io::Write as _;
use std::time::Duration;
use std::time::SystemTime;

use comfy_table::Table;
use comfy_table::presets;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Prints lines of text.
pub(crate) fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints one JSON document.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    say(&format!("{value:#}"))
}

/// Tells the operator something besides what was asked for, in one line.
#[expect(clippy::print_stderr, reason = "a program speaks to its user")]
pub(crate) fn warn(text: &str) {
    eprintln!("regrant: {}", plain(&text.replace('\n', " ")));
}

/// Says how it was asked the wrong way, in several lines.
#[expect(clippy::print_stderr, reason = "a program speaks to its user")]
pub(crate) fn complain(text: &str) {
    eprintln!("error: {text}");
}

/// An error and everything that it came from.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Columns by blanks: easy to read, and to cut by `awk`. Never coloured.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    table.add_rows(
        rows.into_iter()
            .map(|row| row.iter().map(|cell| plain(cell)).collect::<Vec<_>>()),
    );
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// What a store holds came from clients and providers: what would move the
/// cursor or forge a line is shown by its escape.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() || is_invisible(letter) {
            plain.extend(letter.escape_default());
        } else {
            plain.push(letter);
        }
    }
    plain
}

/// `-` for what is not there.
pub(crate) fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

/// RFC 3339 in UTC, to the second.
pub(crate) fn time(time: SystemTime) -> String {
    // Whatever a row says, the others are still listed.
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = seconds
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok());
    seconds
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|whole| whole.format(&Rfc3339).ok())
        .unwrap_or_else(|| "out of range".to_owned())
}

/// `in 59m`, `3d ago`: the largest unit that fits, rounded down.
pub(crate) fn relative(now: SystemTime, then: SystemTime) -> String {
    match then.duration_since(now) {
        Ok(left) => format!("in {}", rough(left)),
        Err(over) => format!("{} ago", rough(over.duration())),
    }
}

pub(crate) fn rough(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What is not seen, by which two texts look alike, and marks of direction, which
/// reorder what is shown: those of `Default_Ignorable_Code_Point` in Unicode 16
/// (DerivedCoreProperties.txt), which has all of `Bidi_Control`, and the separators
/// of lines and paragraphs.
fn is_invisible(letter: char) -> bool {
    matches!(
        letter,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_move_the_cursor_is_escaped() {
        assert_eq!(plain("ada\u{1b}[2J\nroot"), "ada\\u{1b}[2J\\nroot");
        assert_eq!(plain("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(plain("Ада ✓"), "Ада ✓");
    }

    #[test]
    fn what_is_not_seen_is_escaped() {
        for letter in [
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{1160}',
            '\u{17b5}',
            '\u{180e}',
            '\u{200e}',
            '\u{2066}',
            '\u{206f}',
            '\u{2029}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{ffa0}',
            '\u{fff8}',
            '\u{1bca0}',
            '\u{1d173}',
            '\u{e0000}',
            '\u{e0041}',
            '\u{e0fff}',
        ] {
            let shown = plain(&format!("a{letter}b"));
            assert_eq!(shown, format!("a{}b", letter.escape_unicode()));
        }
        assert_eq!(plain("한글 ffi é"), "한글 ffi é");
    }

    #[test]
    fn times_are_told_by_the_largest_unit() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, text) in [
            (0, "in 0s"),
            (119, "in 119s"),
            (120, "in 2m"),
            (7_200, "in 2h"),
            (172_800, "in 2d"),
        ] {
            assert_eq!(relative(now, now + Duration::from_secs(seconds)), text);
        }
        assert_eq!(relative(now, now - Duration::from_secs(90)), "90s ago");
        assert_eq!(time(now), "1970-01-12T13:46:40Z");
        let year_12000 = SystemTime::UNIX_EPOCH + Duration::from_secs(316_500_000_000);
        assert_eq!(time(year_12000), "out of range");
    }

    #[test]
    fn a_table_has_a_line_for_its_header_and_one_for_each_row() {
        let text = table(&["a", "b"], [vec!["1\n2".into(), "3".into()]]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines, ["a     b", "1\\n2  3"]);
    }
}
