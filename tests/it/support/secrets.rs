//! Looks for secrets where none may be.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

/// Everything that is logged in this thread while this lives, down to TRACE.
pub(crate) struct Log {
    text: Text,
    _guard: DefaultGuard,
}

impl Log {
    pub(crate) fn capture() -> Self {
        let text = Text::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(text.clone())
            .finish();
        Self {
            text,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.text.0.lock().unwrap().clone()).unwrap()
    }

    /// How many lines of this level contain `message`.
    pub(crate) fn lines(&self, level: &str, message: &str) -> usize {
        let text = self.text();
        let lines = text.lines();
        lines
            .filter(|line| line.contains(level) && line.contains(message))
            .count()
    }
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Text {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Fails if any secret is in the text, whole or by the half that tells it.
pub(crate) fn assert_absent(secrets: &[String], text: &str, place: &str) {
    for secret in secrets {
        let tail = secret.len().checked_sub(20).and_then(|at| secret.get(at..));
        let tail = tail.expect("a canary is long");
        assert!(!text.contains(tail), "{place} tells {secret}");
    }
}
