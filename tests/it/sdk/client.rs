//! An application on an SDK, to speak to by lines: `tests/sdk/client.*`.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncBufReadExt as _;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::io::BufReader;
use tokio::io::Lines;
use tokio::process::Child;
use tokio::process::Command;
use tokio::time::timeout;

use super::Sdk;
use super::installed;
use super::rust;
use super::stage::Tokens;

/// Ends when dropped.
pub(super) struct Client {
    /// As the application has them stored.
    pub(super) tokens: Tokens,
    /// Where it sent its user to log in since it was started.
    pub(super) logins: Vec<String>,
    input: Input,
    output: Lines<BufReader<Output>>,
    _process: Option<Child>,
}

type Input = Box<dyn AsyncWrite + Send + Unpin>;
type Output = Box<dyn AsyncRead + Send + Unpin>;

impl Client {
    /// With what it had stored. `is_patient` makes the TypeScript one send a
    /// token request again that got no answer.
    pub(super) async fn start(
        sdk: Sdk,
        url: &str,
        client_id: &str,
        tokens: &Tokens,
        is_patient: bool,
    ) -> Self {
        let (input, output, process) = program(sdk).map_or_else(in_this_process, spawned);
        let mut client = Self {
            tokens: tokens.clone(),
            logins: Vec::new(),
            input,
            output: BufReader::new(output).lines(),
            _process: process,
        };
        let stored = json!({
            "url": url,
            "client_id": client_id,
            "tokens": tokens.0,
            "is_patient": is_patient,
        });
        client.write(&stored.to_string()).await;
        client
    }

    /// Calls a tool so many times at once; what became of each call.
    pub(super) async fn call(&mut self, count: usize) -> Vec<String> {
        self.write(&format!("call {count}")).await;
        let line = timeout(PATIENCE, self.output.next_line()).await;
        let line = line.expect("an answer in time").unwrap();
        let mut reply: Value = serde_json::from_str(&line.expect("it runs")).unwrap();
        self.tokens = Tokens(reply["tokens"].take());
        let texts = |name: &str| {
            let texts = reply[name].as_array().unwrap().iter();
            texts.map(|it| it.as_str().unwrap().to_owned()).collect()
        };
        self.logins = texts("logins");
        texts("outcomes")
    }

    async fn write(&mut self, line: &str) {
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.input.write_all(b"\n").await.unwrap();
        self.input.flush().await.unwrap();
    }
}

fn spawned(mut command: Command) -> (Input, Output, Option<Child>) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    (Box::new(input), Box::new(output), Some(child))
}

fn in_this_process() -> (Input, Output, Option<Child>) {
    let (ours, theirs) = tokio::io::duplex(65_536);
    // It ends with the pipe, as the processes do.
    tokio::spawn(rust::run(theirs));
    let (output, input) = tokio::io::split(ours);
    (Box::new(input), Box::new(output), None)
}

/// `None`: it runs in this process.
fn program(sdk: Sdk) -> Option<Command> {
    let (program, file, version) = match sdk {
        Sdk::TypeScript1 => ("node", "client.mjs", "1"),
        Sdk::TypeScript2 => ("node", "client.mjs", "2"),
        Sdk::Python1 => ("python_1/bin/python", "client.py", "1"),
        Sdk::Python2 => ("python_2/bin/python", "client.py", "2"),
        Sdk::Rust3 => return None,
    };
    let mut command = Command::new(installed(program));
    command
        .arg(format!("{}/tests/sdk/{file}", env!("CARGO_MANIFEST_DIR")))
        .arg(version)
        .env_clear()
        .env("SDK_MODULES", installed("npm"));
    Some(command)
}

/// A call may wait for a gateway that waits for a provider.
const PATIENCE: Duration = Duration::from_secs(100);
