//! `--help`, which teaches, and completions.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::support::process::regrant;

#[tokio::test]
async fn every_command_has_help_with_an_example() {
    let mut seen = Vec::new();
    visit(&[], &mut seen).await;

    for path in [
        "migrate",
        "grants list",
        "grants show",
        "credentials list",
        "keys generate",
        "keys status",
        "keys rotate",
        "sweep",
        "health",
    ] {
        assert!(seen.iter().any(|it| it == path), "{path}: {seen:?}");
    }
    let top = help(&[]).await;
    let order = [
        "keys generate",
        "migrate",
        "issue",
        "grants list",
        "grants revoke",
    ];
    let places: Vec<_> = order.iter().map(|it| top.find(it).unwrap()).collect();
    assert!(places.is_sorted(), "the order of a deployment: {top}");
    for variable in ["DATABASE_URL", "REGRANT_KEYS"] {
        assert!(top.contains(variable), "{top}");
    }
}

#[tokio::test]
async fn completions_know_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = regrant(&["completions", shell], &[], "").await;
        assert!(output.status.success(), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["migrate", "credentials", "revoke", "--provider"] {
            let word = word.trim_start_matches(if shell == "fish" { "--" } else { "" });
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[tokio::test]
async fn no_value_that_is_refused_is_repeated() {
    let mut commands = Vec::new();
    visit(&[], &mut commands).await;
    let (mut flags, mut refusals) = (0, 0);
    for command in commands.iter().map(String::as_str).chain([""]) {
        let path: Vec<_> = command.split_whitespace().collect();
        let text = help(&path).await;
        let named = text.split_whitespace();
        let named = named.filter(|word| word.starts_with("--") && *word != "--help");
        let mut tried = vec![
            vec![CANARY.to_owned()],
            vec![CANARY.to_owned(), CANARY.to_owned()],
            vec![format!("-{CANARY}")],
            vec![format!("--no-such-flag={CANARY}")],
            vec!["--no-such-flag".to_owned(), CANARY.to_owned()],
            vec!["help".to_owned(), CANARY.to_owned()],
        ];
        for flag in named {
            let flag = flag.trim_end_matches([',', ']']);
            tried.push(vec![flag.to_owned(), CANARY.to_owned()]);
            tried.push(vec![format!("{flag}={CANARY}")]);
            flags += 1;
        }
        for more in tried {
            let arguments = path.iter().copied().chain(more.iter().map(String::as_str));
            let arguments: Vec<_> = arguments.collect();
            let output = regrant(&arguments, &[], "").await;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8(said).unwrap();
            assert!(!said.contains("pw-canary"), "{arguments:?}: {said}");
            refusals += usize::from(output.status.code() == Some(2));
        }
    }
    assert!(flags > 40 && refusals > 80, "{flags} {refusals}");
}

#[tokio::test]
async fn a_refusal_says_what_was_expected() {
    let id = "32 lower-case hexadecimal digits";
    for (arguments, want) in [
        (&["grants", "show", CANARY][..], id),
        (&["grants", "revoke", CANARY], id),
        (&["grants", "list", CANARY], "unexpected argument"),
        (&["grants", "list", "--limit", "0"], "a number from 1"),
        (&["grants", "list", "--jason=1"], "'--jason'"),
        (&["grants", "list", "--jso"], "there is: --json"),
        (&["grants", "list", "--json=1"], "'--json'"),
        (&["credentials", "list", "--state", CANARY], "terminal"),
        (&["sweep", "--tombstones", "-1"], "Usage"),
        (&["sweep", "--tombstones=-1"], "a number of seconds"),
        (&["completions", CANARY], "[possible values: bash, "),
        (&["swep"], "there is: sweep"),
    ] {
        let output = regrant(arguments, &[], "").await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(want), "{arguments:?}: {said}");
        assert!(said.ends_with("try '--help'.\n"), "{said}");
    }
    let variables = [("ACCESS_TOKEN_TTL", CANARY)];
    let output = regrant(&["health"], &variables, "").await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--access-token-ttl <S>"), "{said}");
    assert!(!said.contains("canary"), "{said}");
}

/// Refused as a value of everything but a plain text.
const CANARY: &str = "postgres://u:pw-canary@db.internal/x?sslmode=verify";

fn visit<'a>(path: &'a [&'a str], seen: &'a mut Vec<String>) -> BoxFuture<'a, ()> {
    async move {
        let text = help(path).await;
        assert!(text.contains("\nExample:\n  "), "{path:?}: {text}");
        assert!(
            text.lines().all(|line| line.len() <= 120),
            "{path:?}: {text}"
        );
        let commands = text.split("\nCommands:\n").nth(1).unwrap_or("");
        let names = commands.lines().take_while(|line| !line.is_empty());
        for name in names.filter_map(|line| line.split_whitespace().next()) {
            if name != "help" {
                let path = [path, &[name]].concat();
                seen.push(path.join(" "));
                visit(&path, seen).await;
            }
        }
    }
    .boxed()
}

async fn help(path: &[&str]) -> String {
    let output = regrant(&[path, &["--help"]].concat(), &[], "").await;
    assert!(output.status.success(), "{path:?}");
    String::from_utf8(output.stdout).unwrap()
}
