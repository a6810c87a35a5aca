//! A second server that follows a [`Cluster`], and the ways in which the first
//! one is lost.

use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tokio_postgres::Client;
use tokio_postgres::NoTls;

use super::cluster::Cluster;
use super::cluster::directory;
use super::cluster::programs;
use super::cluster::run;
use super::cluster::server_program;
use super::cluster::watchdog;

/// A streaming replica on a socket in a directory of its own; removed when
/// dropped, and also when this process is killed.
pub(crate) struct Standby {
    /// Of both servers, the primary first.
    pub(crate) url_of_both: String,
    url: String,
    bin: PathBuf,
    directory: PathBuf,
    watchdog: Child,
}

impl Standby {
    /// A copy of a running primary, once it has caught up.
    pub(crate) async fn of(primary: &Cluster) -> Self {
        let (bin, directory) = (programs(), directory());
        let data = directory.join("data");
        let mut backup = server_program(&bin, "pg_basebackup");
        backup
            .arg("-D")
            .arg(&data)
            .arg("-h")
            .arg(&primary.directory);
        run(backup.args(["-U", "regrant", "-X", "stream", "-c", "fast", "--no-sync"]));
        set(
            &data,
            &format!(
                "unix_socket_directories = '{}'\n\
                 primary_conninfo = 'host={} user=regrant application_name=standby'\n\
                 wal_retrieve_retry_interval = 100ms",
                directory.display(),
                primary.directory.display()
            ),
        );
        std::fs::File::create(data.join("standby.signal")).unwrap();
        let [first, second] = [&primary.directory, &directory].map(|it| encoded(it));
        let standby = Self {
            url_of_both: format!("postgres://regrant@{first},{second}/postgres"),
            url: format!("postgres://regrant@{second}/postgres"),
            watchdog: watchdog(&bin, &directory),
            bin,
            directory,
        };
        standby.control(&["start"]);
        let caught_up = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'
                         AND replay_lsn = pg_current_wal_lsn()";
        counts(&primary.client().await, caught_up, 1).await;
        standby
    }

    /// Lets nothing more arrive from the primary.
    pub(crate) async fn stop_receiving(&self, primary: &Cluster) {
        set(&self.directory.join("data"), "primary_conninfo = ''");
        self.control(&["reload"]);
        let followers = "SELECT count(*) FROM pg_stat_replication";
        counts(&primary.client().await, followers, 0).await;
    }

    /// Makes it take writes, and waits until it does.
    pub(crate) async fn promote(&self) {
        let (bin, directory) = (self.bin.clone(), self.directory.clone());
        let promoted = move || control(&bin, &directory, &["promote"]);
        tokio::task::spawn_blocking(promoted).await.unwrap();
    }

    /// A connection, for looking behind a store's back.
    pub(crate) async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    fn control(&self, arguments: &[&str]) {
        control(&self.bin, &self.directory, arguments);
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _status = self.watchdog.wait();
    }
}

/// From now on a commit is acknowledged when the standby has it.
pub(crate) async fn replicate_synchronously(primary: &Cluster) {
    let client = primary.client().await;
    let setting = "ALTER SYSTEM SET synchronous_standby_names = '*'";
    client.batch_execute(setting).await.unwrap();
    let reload = "SELECT pg_reload_conf()";
    client.batch_execute(reload).await.unwrap();
    let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    counts(&client, synchronous, 1).await;
}

/// Every process of a server, stopped where it stood: it holds its connections
/// and says nothing. Killed when dropped, and also when this process is killed.
pub(crate) struct Frozen {
    pids: Vec<String>,
    killer: Child,
}

impl Frozen {
    pub(crate) fn of(primary: &Cluster) -> Self {
        let file = primary.directory.join("data/postmaster.pid");
        let file = std::fs::read_to_string(file).unwrap();
        let first = file.lines().next().unwrap().trim().to_owned();
        // The first one first: then there are no new ones.
        signal("STOP", std::slice::from_ref(&first));
        let mut pids = children(&first);
        signal("STOP", &pids);
        pids.insert(0, first);
        let mut killer = Command::new("sh");
        killer.args(["-c", r#"cat >/dev/null; kill -s KILL "$@""#, "sh"]);
        let killer = killer.args(&pids).stdin(Stdio::piped()).spawn().unwrap();
        Self { pids, killer }
    }

    /// Lets it go on as if nothing had happened.
    pub(crate) fn thaw(mut self) {
        // Those numbers may soon be somebody else's.
        self.killer.kill().unwrap();
        signal("CONT", &self.pids);
    }
}

/// Ends every process of a server at once, as when its machine dies.
pub(crate) fn kill(primary: &Cluster) {
    drop(Frozen::of(primary));
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.killer.stdin.take());
        let _status = self.killer.wait();
    }
}

/// Some of them may have gone by themselves.
fn signal(name: &str, pids: &[String]) {
    let mut kill = Command::new("kill");
    let _status = kill.args(["-s", name]).args(pids).status().unwrap();
}

fn children(parent: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let names = processes.map(|it| it.unwrap().file_name().into_string().unwrap());
    let is_child = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything: state and parent.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        fields.split_whitespace().nth(1) == Some(parent)
    };
    names
        .filter(|name| name.bytes().all(|it| it.is_ascii_digit()))
        .filter(is_child)
        .collect()
}

fn control(bin: &Path, directory: &Path, arguments: &[&str]) {
    let mut control = server_program(bin, "pg_ctl");
    control.arg("-D").arg(directory.join("data"));
    control.arg("-l").arg(directory.join("log"));
    run(control.args(["-w", "-s"]).args(arguments));
}

/// Adds lines to the settings of a server; the last one of a name counts.
fn set(data: &Path, settings: &str) {
    let conf = data.join("postgresql.conf");
    let conf = std::fs::OpenOptions::new().append(true).open(conf);
    writeln!(conf.unwrap(), "{settings}").unwrap();
}

fn encoded(directory: &Path) -> String {
    directory.display().to_string().replace('/', "%2F")
}

async fn counts(client: &Client, sql: &str, wanted: i64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let count: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
        if count == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{count}, not {wanted}: {sql}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Far more than anything takes that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
