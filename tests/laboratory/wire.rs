//! Connections that can be reset from inside a handler, and that tell when an
//! answer has been written.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve;
use axum::serve::IncomingStream;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

pub(crate) struct Listener(TcpListener);

impl Listener {
    /// On a free port of this machine.
    pub(crate) async fn bind() -> io::Result<Self> {
        TcpListener::bind("127.0.0.1:0").await.map(Self)
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl serve::Listener for Listener {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => return (Wire::new(stream), address),
                // Out of file descriptors, perhaps: some will be closed.
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.address()
    }
}

/// A connection, with a switch.
pub(crate) struct Wire {
    stream: TcpStream,
    switch: Switch,
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        // Or answers that are written in two pieces wait for each other.
        let _best_effort = stream.set_nodelay(true);
        Self {
            stream,
            switch: Switch::default(),
        }
    }
}

/// What a handler can do to the connection of its request.
#[derive(Clone, Default)]
pub(crate) struct Switch(Arc<Mutex<Orders>>);

#[derive(Default)]
struct Orders {
    is_cut: bool,
    on_written: Option<Box<dyn FnOnce() + Send>>,
}

impl Switch {
    /// Whatever is written next resets the connection instead.
    pub(crate) fn cut(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_cut = true;
    }

    /// Calls back when the answer has been written, if it ever is.
    pub(crate) fn on_written(&self, call: impl FnOnce() + Send + 'static) {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        orders.on_written = Some(Box::new(call));
    }

    fn take(&self) -> Orders {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Connected<IncomingStream<'_, Listener>> for Switch {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().switch.clone()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let orders = self.switch.take();
        if orders.is_cut {
            // Without lingering, closing sends RST; the error makes the server
            // close.
            self.stream.set_zero_linger()?;
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        // An answer is small enough for one piece.
        match (&written, orders.on_written) {
            (Poll::Ready(Ok(_)), Some(call)) => call(),
            (Poll::Pending, Some(call)) => self.switch.on_written(call),
            (Poll::Ready(Err(_)), Some(_)) | (_, None) => {}
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

const PAUSE: Duration = Duration::from_millis(50);
