//! A PostgreSQL cluster of one test's own, which can be stopped and killed.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tokio_postgres::Client;
use tokio_postgres::NoTls;

/// A running cluster on a socket in a directory of its own; removed when
/// dropped, and also when this process is killed.
pub(crate) struct Cluster {
    pub(crate) url: String,
    bin: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) port: u16,
    watchdog: Child,
}

/// How a server is told to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// It says goodbye to its clients, and writes everything.
    Fast,
    /// It drops everything; the next start recovers from the log.
    Immediate,
}

impl Cluster {
    /// With these settings besides, such as `max_connections=20`.
    pub(crate) async fn start(settings: &[&str]) -> Self {
        Self::start_at(DEFAULT_PORT, settings).await
    }

    /// One that listens at `port` of this machine too.
    pub(crate) async fn start_on_tcp(settings: &[&str]) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut all = vec!["listen_addresses='127.0.0.1'"];
        all.extend(settings);
        Self::start_at(port, &all).await
    }

    async fn start_at(port: u16, settings: &[&str]) -> Self {
        let bin = programs();
        let directory = directory();
        let mut initdb = server_program(&bin, "initdb");
        initdb.arg("-D").arg(directory.join("data"));
        initdb.args(["-U", "regrant", "-A", "trust", "--no-sync"]);
        run(initdb.args(["--locale=C", "-E", "UTF8"]));
        let mut conf = std::fs::OpenOptions::new()
            .append(true)
            .open(directory.join("data/postgresql.conf"))
            .unwrap();
        writeln!(conf, "unix_socket_directories = '{}'", directory.display()).unwrap();
        writeln!(conf, "port = {port}").unwrap();
        // A crash of the server loses nothing: what a commit says is with the
        // operating system. Only that one must not crash.
        for setting in [
            "listen_addresses=''",
            "fsync=off",
            "synchronous_commit=on",
            "full_page_writes=off",
        ]
        .iter()
        .chain(settings)
        {
            writeln!(conf, "{setting}").unwrap();
        }
        let socket = directory.display().to_string().replace('/', "%2F");
        let cluster = Self {
            url: format!("postgres://regrant@{socket}:{port}/postgres"),
            port,
            watchdog: watchdog(&bin, &directory),
            bin,
            directory,
        };
        cluster.restart().await;
        cluster
    }

    /// Starts a server that was stopped or killed, and waits until it answers.
    pub(crate) async fn restart(&self) {
        let deadline = Instant::now() + PATIENCE;
        // What is left of a killed one may still hold its memory.
        while !self.control(&["start"]) {
            let log = std::fs::read_to_string(self.directory.join("log"));
            assert!(Instant::now() < deadline, "no start: {log:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Stops it, and waits until it is gone.
    pub(crate) fn stop(&self, how: Stop) {
        let mode = match how {
            Stop::Fast => "fast",
            Stop::Immediate => "immediate",
        };
        assert!(self.control(&["-m", mode, "stop"]));
    }

    /// SIGKILL to the server's first process: nobody says goodbye. The others
    /// notice a moment later; until then they may still answer.
    pub(crate) fn kill(&self) {
        let file = std::fs::read_to_string(self.directory.join("data/postmaster.pid"));
        let pid = file.unwrap().lines().next().unwrap().trim().to_owned();
        run(Command::new("kill").args(["-s", "KILL", &pid]));
    }

    /// A connection, for looking behind a store's back.
    pub(crate) async fn client(&self) -> Client {
        self.connect().await.unwrap()
    }

    pub(crate) async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Makes a file the server's own, as it wants its keys.
    pub(crate) fn hand_over(file: &Path) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            std::os::unix::fs::chown(file, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    fn control(&self, arguments: &[&str]) -> bool {
        let mut control = server_program(&self.bin, "pg_ctl");
        control.arg("-D").arg(self.directory.join("data"));
        control.arg("-l").arg(self.directory.join("log"));
        // The server outlives the program, and must not keep our pipes open.
        let status = control.args(["-w", "-s"]).args(arguments).status();
        status.unwrap().success()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _status = self.watchdog.wait();
    }
}

/// Stops the server and removes its directory when this process ends, however
/// it does: its end of the pipe is closed then.
pub(super) fn watchdog(bin: &Path, directory: &Path) -> Child {
    let script = r#"
        trap "" INT TERM HUP
        cat >/dev/null
        "$0/pg_ctl" -D "$1/data" -m immediate -w stop >/dev/null 2>&1
        # What is left of a killed one may still be writing.
        for _ in 1 2 3 4 5; do rm -rf "$1" && break; sleep 1; done
    "#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(bin).arg(directory);
    lower(&mut shell).stdin(Stdio::piped()).spawn().unwrap()
}

/// The server refuses root: then it runs as nobody, who owns nothing else.
fn lower(command: &mut Command) -> &mut Command {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.current_dir("/")
}

pub(super) fn server_program(bin: &Path, name: &str) -> Command {
    let mut command = Command::new(bin.join(name));
    lower(&mut command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

pub(super) fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// With a short path: a socket's may have 107 bytes.
pub(super) fn directory() -> PathBuf {
    let name = format!("regrant-{:012x}", fastrand::u64(..1 << 48));
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory).unwrap();
    if is_root() {
        std::os::unix::fs::chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    directory
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Where the server programs are: as `tests/run` looks for them.
pub(super) fn programs() -> PathBuf {
    let named = std::env::var_os("PG_BIN").map(PathBuf::from);
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        let directories: Vec<_> = std::env::split_paths(&path).collect();
        directories
    });
    // Through symlinks: the programs look for each other beside themselves.
    let on_path = on_path.filter_map(|directory| {
        let program = directory.join("initdb").canonicalize().ok()?;
        program.parent().map(Path::to_owned)
    });
    let mut installed: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map(|version| version.unwrap().path().join("bin"))
        .collect();
    installed.sort();
    named
        .into_iter()
        .chain(on_path)
        .chain(installed.into_iter().rev())
        .find(|bin| bin.join("initdb").exists() && bin.join("pg_ctl").exists())
        .expect("no PostgreSQL server programs: set PG_BIN to where initdb and pg_ctl are")
}

const DEFAULT_PORT: u16 = 5432;
const NOBODY: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
