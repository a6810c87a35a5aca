//! Hearing at once of what ends: `LISTEN`, on a connection of its own.
//!
//! 1. The connection is a direct one: a pooler accepts `LISTEN` and delivers
//!    nothing. So is a connection to a primary that was replaced, or is frozen.
//!    What counts is therefore not that it stands: now and then something is
//!    said through the store's own connections, and has to be heard here.
//! 2. When it was not there, ends were missed: that it listens again is said
//!    once that is proven, and whoever is told reads everything afresh.
//! 3. Nothing depends on it. Without it the staleness bound holds.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::Either;
use futures_util::future::select;
use futures_util::stream;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::AsyncMessage;
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use super::connection::Connections;
use super::host::Messages;
use super::hosts::Hosts;
use super::notify;
use crate::BoxError;
use crate::seal::random_bytes;
use crate::store::Change;

/// Who listens where.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub(super) hosts: Hosts,
    /// What others say things through.
    pub(super) connections: Connections,
}

impl Listener {
    /// Listens until the stream is dropped, connecting again and again.
    pub(super) fn changes(self) -> BoxStream<'static, Change> {
        let (sender, receiver) = mpsc::channel(BUFFERED);
        let task = AbortOnDropHandle::new(tokio::spawn(self.keep_listening(sender)));
        stream::unfold((receiver, task), |(mut receiver, task)| async move {
            let change = receiver.recv().await?;
            Some((change, (receiver, task)))
        })
        .boxed()
    }

    async fn keep_listening(self, changes: mpsc::Sender<Change>) {
        let mut pause = FIRST_PAUSE;
        let mut was_heard = true;
        loop {
            let began_at = Instant::now();
            let Err(error) = self.listen(&changes).await;
            let has_worked = began_at.elapsed() > PROBE_EVERY;
            if has_worked {
                pause = FIRST_PAUSE;
            }
            // Once per outage: what is wrong does not change by being tried.
            if has_worked || was_heard {
                tracing::warn!(
                    error = &*error as &dyn std::error::Error,
                    "not listening: what ends on other replicas is noticed within the staleness \
                     bound (DATABASE_LISTEN_URL must lead to the database without a pooler)"
                );
            }
            was_heard = false;
            if changes.send(Change::Deaf).await.is_err() {
                return;
            }
            let jitter = 0.5 + fastrand::f64();
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Until it is known that nothing can be heard any more.
    async fn listen(&self, changes: &mpsc::Sender<Change>) -> Result<Infallible, BoxError> {
        let mut moves = self.connections.moves();
        let Ear {
            client: _client,
            mut said,
            reader: _reader,
        } = connect(&self.hosts).await?;

        let mut probe: Option<Probe> = None;
        let mut next_probe_at = Instant::now();
        let mut is_listening = false;
        loop {
            let until = probe.as_ref().map_or(next_probe_at, |probe| probe.due_at);
            let next = pin!(tokio::time::timeout_at(until, said.recv()));
            let heard = match select(next, pin!(moves.changed())).await {
                Either::Left((heard, _)) => heard,
                // Statements go to another server: this one may be the wrong one.
                Either::Right((Ok(()), _)) => return Err("the database failed over".into()),
                Either::Right((Err(_), next)) => next.await,
            };
            let Ok(payload) = heard else {
                if probe.is_some() {
                    return Err("what is said through the store's connections is not heard".into());
                }
                probe = Some(self.say_something().await?);
                continue;
            };
            let payload = payload.ok_or("the connection was closed")?;
            if let Some(change) = notify::heard(&payload) {
                changes.send(change).await?;
            } else if probe.as_ref().is_some_and(|probe| probe.payload == payload) {
                probe = None;
                next_probe_at = Instant::now() + PROBE_EVERY;
                if !is_listening {
                    is_listening = true;
                    tracing::info!("listening for what ends on other replicas");
                    changes.send(Change::Listening).await?;
                }
            }
        }
    }

    async fn say_something(&self) -> Result<Probe, BoxError> {
        let nonce = u64::from_be_bytes(random_bytes()?);
        let payload = format!("p{nonce:016x}");
        if !notify::tell(&self.connections, &payload).await {
            return Err("the store's connections do not work".into());
        }
        Ok(Probe {
            payload,
            due_at: Instant::now() + PATIENCE,
        })
    }
}

/// A connection that was told to listen; ends when dropped.
pub(super) struct Ear {
    client: Client,
    said: mpsc::UnboundedReceiver<String>,
    reader: AbortOnDropHandle<()>,
}

pub(super) async fn connect(hosts: &Hosts) -> Result<Ear, BoxError> {
    let (client, messages) = hosts.connect_raw().await?;
    let (heard, said) = mpsc::unbounded_channel();
    let reader = AbortOnDropHandle::new(tokio::spawn(read(messages, heard)));
    let listen = format!("LISTEN {}", notify::CHANNEL);
    tokio::time::timeout(PATIENCE, client.batch_execute(&listen)).await??;
    Ok(Ear {
        client,
        said,
        reader,
    })
}

/// Something that was said, and by when it should be heard.
struct Probe {
    payload: String,
    due_at: Instant,
}

/// Takes notifications off the connection, and moves it along.
async fn read(mut messages: Messages, heard: mpsc::UnboundedSender<String>) {
    while let Some(Ok(message)) = messages.next().await {
        if let AsyncMessage::Notification(notification) = message
            && heard.send(notification.payload().to_owned()).is_err()
        {
            return;
        }
    }
}

const PROBE_EVERY: Duration = Duration::from_secs(10);
/// For the listener's own statements, and for what was said to arrive.
const PATIENCE: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const BUFFERED: usize = 256;
