//! A directory to run git in, which knows nothing of whoever runs the tests.

use std::ffi::OsStr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Output;
use std::process::Stdio;

use tokio::process::Command;

/// Removed when dropped.
pub(super) struct Workspace {
    directory: PathBuf,
}

impl Workspace {
    pub(super) fn create() -> Self {
        let name = format!("regrant-git-{:012x}", fastrand::u64(..1 << 48));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A program with git's settings of nobody.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.directory)
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_AUTHOR_NAME", "Ada")
            .env("GIT_AUTHOR_EMAIL", "ada@example.com")
            .env("GIT_COMMITTER_NAME", "Ada")
            .env("GIT_COMMITTER_EMAIL", "ada@example.com")
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs git in a directory of this one.
    pub(super) async fn run(
        &self,
        directory: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Output {
        let mut command = self.command("git");
        command
            .current_dir(self.path(directory))
            .args(arguments)
            .envs(variables.iter().copied());
        let output = command.output().await;
        output.unwrap_or_else(|error| {
            panic!("git does not run: install the package `git`, 2.32 or later ({error})")
        })
    }

    /// What git printed, which must succeed.
    pub(super) async fn git(&self, directory: &str, arguments: &[&str]) -> String {
        let output = self.run(directory, arguments, &[]).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        printed.trim_end().to_owned()
    }

    /// Commits a new file; the id of the commit.
    pub(super) async fn commit(&self, directory: &str, file: &str, content: &[u8]) -> String {
        std::fs::write(self.path(directory).join(file), content).unwrap();
        self.git(directory, &["add", file]).await;
        self.git(directory, &["commit", "-q", "-m", file]).await;
        self.head(directory, "HEAD").await
    }

    /// The commit that a name stands for.
    pub(super) async fn head(&self, directory: &str, name: &str) -> String {
        self.git(directory, &["rev-parse", name]).await
    }

    /// A program that answers git's prompts with `USER_NAME` and `GATEWAY_TOKEN`
    /// of its environment, and notes them in the file `prompts`.
    pub(super) fn ask_pass(&self) -> String {
        let script = "#!/bin/sh\n\
                      printf '%s\\n' \"$1\" >>\"$HOME/prompts\"\n\
                      case \"$1\" in\n\
                      Username*) printf '%s\\n' \"$USER_NAME\" ;;\n\
                      *) printf '%s\\n' \"$GATEWAY_TOKEN\" ;;\n\
                      esac\n";
        let path = self.path("ask-pass");
        std::fs::write(&path, script).unwrap();
        make_executable(&path);
        path.into_os_string().into_string().unwrap()
    }

    pub(super) fn prompts(&self) -> Vec<String> {
        let prompts = std::fs::read_to_string(self.path("prompts")).unwrap();
        prompts.lines().map(str::to_owned).collect()
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What is left of it harms nobody; a panic here would hide the test's.
        let _removed = std::fs::remove_dir_all(&self.directory);
    }
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;

    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}
