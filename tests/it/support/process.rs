//! The example gateway and the operator command as processes.

use std::path::PathBuf;
use std::process::Output;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncBufReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::io::BufReader;
use tokio::process::Child;
use tokio::process::Command;

use super::database::without_pooler;

/// A gateway process; killed when dropped.
pub(crate) struct GatewayProcess {
    pub(crate) child: Child,
    pub(crate) url: String,
}

impl GatewayProcess {
    /// Starts it with these variables, and waits for its line.
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        Self::of(gateway(variables)).await
    }

    /// Starts another program that says where it listens.
    pub(crate) async fn of(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let url = listening(&mut child).await;
        Self { child, url }
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let killed = std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status();
        assert!(killed.unwrap().success());
    }
}

/// Waits until a process says where it listens.
pub(super) async fn listening(child: &mut Child) -> String {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines
        .next_line()
        .await
        .unwrap()
        .expect("it says it listens");
    // What it prints later must not block it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    line.strip_prefix("listening on ").unwrap().to_owned()
}

/// The gateway with nothing but these variables.
pub(crate) fn gateway(variables: &[(&str, &str)]) -> Command {
    clean(built("examples/gateway"), variables)
}

/// Runs the operator command; its output, and its exit status.
pub(crate) async fn regrant(arguments: &[&str], variables: &[(&str, &str)], stdin: &str) -> Output {
    let mut child = clean(PathBuf::from(env!("CARGO_BIN_EXE_regrant")), variables)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(stdin.as_bytes()).await.unwrap();
    drop(input);
    child.wait_with_output().await.unwrap()
}

/// The JSON that a successful command printed.
pub(crate) fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(crate) fn clean(program: PathBuf, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(variables.iter().copied());
    let variable = |wanted| variables.iter().find(|(name, _)| *name == wanted);
    let direct = variable("DATABASE_URL").and_then(|(_, url)| without_pooler(url));
    if let (Some(direct), None) = (direct, variable("DATABASE_LISTEN_URL")) {
        command.env("DATABASE_LISTEN_URL", direct);
    }
    command
}

/// What cargo built beside this test.
pub(crate) fn built(path: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join(path);
    assert!(
        program.exists(),
        "{} is not built: run the tests with `tests/run`",
        program.display()
    );
    program
}
