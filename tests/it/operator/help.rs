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
