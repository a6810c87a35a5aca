//! What a connection string says, in both forms that PostgreSQL has.
//!
//! The TLS settings are read here, before tokio-postgres sees the string: it
//! knows fewer modes, and its default falls back to no TLS when somebody in
//! between says that the server has none.

use std::str::FromStr as _;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::error::ConfigError;

pub(super) struct ConnectionString {
    /// All but the TLS settings.
    pub(super) config: Config,
    pub(super) tls: TlsSettings,
    /// Whether it says which session it wants.
    pub(super) has_target: bool,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct TlsSettings {
    pub(super) mode: TlsMode,
    /// A file of the only roots to trust; the platform's if there is none.
    pub(super) roots: Option<String>,
    /// The files of the client certificate's chain and of its key.
    pub(super) identity: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum TlsMode {
    /// TLS to every host that is not this machine.
    #[default]
    Unsaid,
    Disable,
    /// Chain and host name are checked.
    VerifyFull,
}

impl ConnectionString {
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let Split {
            rest,
            ours,
            has_target,
        } = Split::of(text);
        // Its error names what it takes for an option: in a string that is not of
        // its form, that may be the password.
        let config = Config::from_str(&rest).map_err(|_error| refuse(UNREADABLE))?;
        if is_url(text) && config.get_hosts().iter().any(is_misread) {
            return Err(refuse(
                "has an `@` in a host: write %40 for each `@` of a user name or a password",
            ));
        }
        let tls = TlsSettings::of(ours)?;
        Ok(Self {
            config,
            tls,
            has_target,
        })
    }
}

impl TlsSettings {
    fn of(pairs: Vec<(String, String)>) -> Result<Self, ConfigError> {
        let mut settings = Self::default();
        let (mut certificate, mut key) = (None, None);
        for (name, value) in pairs {
            match name.as_str() {
                "sslmode" => settings.mode = TlsMode::of(&value)?,
                "sslrootcert" => settings.roots = Some(value).filter(|roots| roots != "system"),
                "sslcert" => certificate = Some(value),
                _ => key = Some(value),
            }
            // Who says how to check the server wants it checked.
            if name != "sslmode" && settings.mode == TlsMode::Unsaid {
                settings.mode = TlsMode::VerifyFull;
            }
        }
        settings.identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(refuse("has one of sslcert and sslkey: give both")),
        };
        Ok(settings)
    }
}

impl TlsMode {
    fn of(value: &str) -> Result<Self, ConfigError> {
        match value {
            "disable" => Ok(Self::Disable),
            // Encryption to a server that nobody checked is encryption to
            // whoever answers.
            "require" | "verify-ca" | "verify-full" => Ok(Self::VerifyFull),
            "allow" | "prefer" => Err(refuse(
                "has sslmode=prefer or allow, which send everything in clear when anybody in \
                 between says that the server has no TLS: write sslmode=verify-full, or \
                 sslmode=disable on a network that you trust",
            )),
            _ => Err(refuse(
                "has an unknown sslmode: write sslmode=verify-full or sslmode=disable",
            )),
        }
    }
}

/// The settings that are read here, and the string without them.
#[derive(Default)]
struct Split {
    rest: String,
    ours: Vec<(String, String)>,
    has_target: bool,
}

impl Split {
    fn of(text: &str) -> Self {
        if is_url(text) {
            Self::of_url(text)
        } else {
            Self::of_pairs(text)
        }
    }

    fn of_url(url: &str) -> Self {
        let mut split = Self::default();
        // A password may hold a question mark.
        let credentials = url.split_once('@').filter(|(before, _)| !has_query(before));
        let has_credentials = credentials.is_some();
        let (credentials, after) = credentials.unwrap_or(("", url));
        let Some((place, query)) = after.split_once('?') else {
            url.clone_into(&mut split.rest);
            return split;
        };
        let kept: Vec<_> = query
            .split('&')
            .filter(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                !split.takes(&percent_decoded(name), || percent_decoded(value))
            })
            .collect();
        let mut kept = kept.join("&");
        let at = if has_credentials {
            "@"
        } else {
            // tokio-postgres takes all before any `@` for credentials.
            kept = kept.replace('@', "%40");
            ""
        };
        split.rest = format!("{credentials}{at}{place}?{kept}");
        split
    }

    fn of_pairs(text: &str) -> Self {
        let mut split = Self::default();
        let mut left = text.trim_start();
        while !left.is_empty() {
            let Some((name, value, after)) = pair(left) else {
                // tokio-postgres says what is wrong with it.
                split.rest.push_str(left);
                break;
            };
            let raw = left.strip_suffix(after).unwrap_or(left);
            if !split.takes(name, || value) {
                split.rest.push_str(raw);
                split.rest.push(' ');
            }
            left = after.trim_start();
        }
        split
    }

    fn takes(&mut self, name: &str, value: impl FnOnce() -> String) -> bool {
        self.has_target |= name == "target_session_attrs";
        let is_ours = OURS.contains(&name);
        if is_ours {
            self.ours.push((name.to_owned(), value()));
        }
        is_ours
    }
}

fn is_url(text: &str) -> bool {
    URL_PREFIXES.iter().any(|prefix| text.starts_with(prefix))
}

/// Whether a part of a URL has come to its query, as `//host/name?option=` has.
fn has_query(part: &str) -> bool {
    let place = part.split_once("//").and_then(|(_, it)| it.split_once('/'));
    let query = place.and_then(|(_host, it)| it.split_once('?'));
    let name = query.and_then(|(_name, it)| it.split_once('='));
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    name.is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(is_letter))
}

/// Whether it holds the end of a password: errors name hosts, and resolvers are
/// asked for them.
fn is_misread(host: &Host) -> bool {
    matches!(host, Host::Tcp(name) if name.contains('@'))
}

/// The first `name = value` of a text, and what is left of it.
fn pair(text: &str) -> Option<(&str, String, &str)> {
    let end = text.find(|c: char| c.is_whitespace() || c == '=')?;
    let (name, after) = text.split_at_checked(end)?;
    let after = after.trim_start().strip_prefix('=')?.trim_start();
    let (value, after) = match after.strip_prefix('\'') {
        Some(quoted) => {
            let (value, after) = unescaped(quoted, |c| c == '\'');
            (value, after.strip_prefix('\'')?)
        }
        None => unescaped(after, char::is_whitespace),
    };
    (!name.is_empty()).then_some((name, value, after))
}

fn unescaped(text: &str, is_end: impl Fn(char) -> bool) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.chars();
    loop {
        let left = characters.as_str();
        match characters.next() {
            Some('\\') => value.extend(characters.next()),
            Some(c) if is_end(c) => return (value, left),
            Some(c) => value.push(c),
            None => return (value, left),
        }
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let Some((&byte, after)) = left.split_first() {
        let decoded = match left {
            [b'%', high, low, after @ ..] => hex(*high).zip(hex(*low)).map(|(h, l)| (h, l, after)),
            _ => None,
        };
        if let Some((high, low, after)) = decoded {
            bytes.push(high << 4 | low);
            left = after;
        } else {
            bytes.push(byte);
            left = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

pub(super) fn refuse(reason: &str) -> ConfigError {
    ConfigError::new("the connection string", reason)
}

const UNREADABLE: &str = "cannot be read: write postgres://USER:PASSWORD@HOST/DATABASE, with what \
                          is special in a password percent-encoded, or pairs such as host=HOST \
                          password='…', with options that PostgreSQL has";
const URL_PREFIXES: [&str; 2] = ["postgres://", "postgresql://"];
const OURS: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(text: &str) -> TlsSettings {
        ConnectionString::parse(text).unwrap().tls
    }

    #[test]
    fn both_forms_say_how_the_server_is_checked() {
        let expected = TlsSettings {
            mode: TlsMode::VerifyFull,
            roots: Some("/etc/a b/ca.pem".to_owned()),
            identity: Some(("c.pem".to_owned(), "k.pem".to_owned())),
        };
        for text in [
            "postgres://u:p%3F?@db/x?sslmode=verify-full&sslrootcert=%2Fetc%2Fa%20b%2Fca.pem\
             &connect_timeout=2&sslcert=c.pem&sslkey=k.pem",
            "host=db sslmode = require sslrootcert='/etc/a b/ca.pem' connect_timeout=2 \
             sslcert=c.pem sslkey=k.pem user=u password='p??'",
            r"sslrootcert=/etc/a\ b/ca.pem host=db sslcert=c.pem connect_timeout=2 user=u
              sslmode='verify-ca' sslkey=k.pem password=p?\?",
        ] {
            let parsed = ConnectionString::parse(text).unwrap();
            assert_eq!(parsed.tls, expected, "{text}");
            let config = parsed.config;
            assert_eq!(config.get_connect_timeout().unwrap().as_secs(), 2);
            assert_eq!(config.get_user(), Some("u"));
            assert_eq!(config.get_password(), Some(&b"p??"[..]));
            assert!(!parsed.has_target);
        }
    }

    #[test]
    fn an_at_sign_in_the_options_is_no_end_of_credentials() {
        for (text, user, host) in [
            (
                "postgres:///x?user=a@b&host=db&sslmode=disable",
                "a@b",
                "db",
            ),
            ("postgres://db:5/x?sslmode=disable&user=a@b", "a@b", "db"),
            (
                "postgres://db/x?password=p@q&user=a%40b&sslmode=disable",
                "a@b",
                "db",
            ),
            (
                "postgres://u:p/q@db/x?application_name=a@b&sslmode=disable",
                "u",
                "db",
            ),
            ("postgres://u:p/?q@db/x?sslmode=disable", "u", "db"),
        ] {
            let parsed = ConnectionString::parse(text).unwrap();
            assert_eq!(parsed.tls.mode, TlsMode::Disable, "{text}");
            assert_eq!(parsed.config.get_user(), Some(user), "{text}");
            let hosts = parsed.config.get_hosts();
            assert_eq!(hosts, [Host::Tcp(host.to_owned())], "{text}");
            assert_eq!(parsed.config.get_dbname(), Some("x"), "{text}");
        }
    }

    #[test]
    fn what_says_how_to_check_asks_for_a_check() {
        assert_eq!(tls("host=127.0.0.1").mode, TlsMode::Unsaid);
        assert_eq!(tls("postgres://db/x").mode, TlsMode::Unsaid);
        assert_eq!(tls("host=db sslrootcert=ca.pem").mode, TlsMode::VerifyFull);
        let system = tls("postgres://db/x?sslrootcert=system");
        assert_eq!((system.mode, system.roots), (TlsMode::VerifyFull, None));
        assert_eq!(tls("sslmode=disable host=db").mode, TlsMode::Disable);
    }

    #[test]
    fn modes_that_fall_back_are_refused_and_told_what_to_write() {
        for mode in ["prefer", "allow", "verify"] {
            for text in [
                format!("postgres://u:canary@db/x?sslmode={mode}"),
                format!("host=db password=canary sslmode={mode}"),
            ] {
                let error = ConnectionString::parse(&text).err().unwrap().to_string();
                assert!(error.contains("sslmode=verify-full"), "{error}");
                assert!(!error.contains("canary"));
            }
        }
        let half = ConnectionString::parse("host=db sslcert=c.pem").err();
        assert!(half.unwrap().to_string().contains("sslkey"));
    }

    #[test]
    fn a_target_that_is_asked_for_is_noticed() {
        for text in [
            "host=a,b target_session_attrs=any",
            "postgres://a,b/x?target_session_attrs=any",
        ] {
            assert!(ConnectionString::parse(text).unwrap().has_target);
        }
    }

    #[test]
    fn an_error_never_repeats_what_may_be_a_password() {
        for text in [
            // One of another scheme, or with a blank before it, is no URL.
            "postgresql+asyncpg://u:canary@db/x?sslmode=disable",
            " postgres://u:canary@db/x?sslmode=disable",
            "POSTGRES://u:canary@db/x?sslmode=disable",
            // Characters that are not escaped.
            "host=db password=my canary=x",
            "postgres://u@db/x?password=a&canary=b",
            "postgres://u:pass@canary@db/x",
            "postgres://u:pass@canary@db/x?sslmode=disable",
        ] {
            let error = ConnectionString::parse(text).err().unwrap();
            let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
                error.source()
            });
            for cause in causes {
                let said = format!("{cause} {cause:?}");
                assert!(!said.contains("canary"), "{said}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in ["host", "host='a", "=a", "postgres://a/x?nonsense=1"] {
            let parsed = ConnectionString::parse(text);
            let is_empty = |parsed: &ConnectionString| parsed.config.get_hosts().is_empty();
            assert!(parsed.as_ref().map_or(true, is_empty), "{text}");
        }
    }
}
