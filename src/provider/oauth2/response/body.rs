//! Finds members in whatever a body is.

use serde_json::Deserializer;
use serde_json::Map;
use serde_json::Value;

/// The members of a body.
#[derive(Default)]
pub(super) struct Parsed {
    pub(super) members: Map<String, Value>,
    /// They are not all, and some may be of another depth.
    pub(super) is_salvaged: bool,
}

/// The members of a body: JSON, a form, or JSON that is broken somewhere else.
pub(super) fn parse(body: &[u8]) -> Option<Parsed> {
    let whole = |members| Parsed {
        members,
        is_salvaged: false,
    };
    // A user's name in another encoding must not cost the user's login.
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.starts_with('{') {
        // What follows the object is not of interest.
        let mut values = Deserializer::from_str(text).into_iter();
        return match values.next() {
            Some(Ok(Value::Object(members))) => Some(whole(members)),
            // Cut short there may have been a refresh token yet to come.
            _ if text.ends_with('}') => Some(Parsed {
                members: salvage(text),
                is_salvaged: true,
            }),
            _ => None,
        };
    }
    // HTML and plain text would parse as a form of sorts.
    (text.contains('=') && !text.starts_with('[') && !text.contains('<')).then(|| {
        let pairs = form_urlencoded::parse(text.as_bytes());
        let members = pairs.map(|(name, value)| (name.into_owned(), value.into_owned().into()));
        whole(members.collect())
    })
}

/// The first of these members that is non-empty text, or a number. An empty or
/// null refresh token means "keep the old one", never "erase it".
pub(super) fn text(
    members: &Map<String, Value>,
    paths: impl Iterator<Item: AsRef<str>>,
) -> Option<String> {
    first(members, paths, |value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    })
}

/// The first of these members that is non-empty text.
pub(super) fn word(
    members: &Map<String, Value>,
    paths: impl Iterator<Item: AsRef<str>>,
) -> Option<String> {
    first(members, paths, |value| value.as_str().map(str::to_owned))
}

fn first(
    members: &Map<String, Value>,
    mut paths: impl Iterator<Item: AsRef<str>>,
    read: impl Fn(&Value) -> Option<String>,
) -> Option<String> {
    paths.find_map(|path| {
        let text = read(member(members, path.as_ref())?)?;
        // No token has space around it; a line's end is easily sent along.
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    })
}

/// The member at a path: `data.access_token` is the one of that name, or else
/// the `access_token` in `data`.
pub(super) fn member<'a>(members: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    members.get(path).or_else(|| {
        let (name, rest) = path.split_once('.')?;
        member(members.get(name)?.as_object()?, rest)
    })
}

/// Reads the text and number members at the top, and in `data`, of an object
/// that is not quite JSON: a number out of range, half an emoji, a raw line break
/// in a name. Those in `data` get names such as `data.access_token`.
fn salvage(text: &str) -> Map<String, Value> {
    let mut members = Map::new();
    let mut depth = 0_i32;
    let mut is_data = false;
    let mut name: Option<String> = None;
    let mut rest = text;
    while let Some((between, after)) = rest.split_once('"') {
        let (quoted, after) = split_at_quote(after);
        rest = after;
        for c in between.chars() {
            depth += match c {
                '{' | '[' => 1,
                '}' | ']' => -1,
                _ => 0,
            };
        }
        if rest.trim_start().starts_with(':') {
            if depth == 1 {
                is_data = quoted == "data";
            }
            name = match depth {
                1 => Some(quoted.to_owned()),
                2 if is_data => Some(format!("data.{quoted}")),
                _ => None,
            };
            let (value, _) = rest.split_once([',', '}']).unwrap_or((rest, ""));
            let value = value.trim().trim_start_matches(':').trim();
            if let (Some(name), Ok(Value::Number(number))) = (&name, serde_json::from_str(value)) {
                members.insert(name.clone(), Value::Number(number));
            }
        } else if let Some(name) = name.take().filter(|_| between.trim() == ":") {
            let text = serde_json::from_str(&format!("\"{quoted}\""));
            members.insert(name, text.unwrap_or_else(|_| Value::from(quoted)));
        }
    }
    members
}

/// What is before the closing quote, and what is after it.
fn split_at_quote(text: &str) -> (&str, &str) {
    let mut is_escaped = false;
    let end = text.char_indices().find(|(_, c)| {
        let is_end = *c == '"' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_end
    });
    end.and_then(|(at, _)| text.split_at_checked(at))
        .map_or((text, ""), |(quoted, rest)| {
            (quoted, rest.strip_prefix('"').unwrap_or(rest))
        })
}
