//! Response bodies: the gateway's own, untouched, or a short one of ours.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::Full;
use pin_project_lite::pin_project;

pin_project! {
    /// The body of a response that went through the layer.
    ///
    /// Frames of the gateway pass as they come, trailers included: nothing is
    /// buffered.
    ///
    /// ```
    /// use http_body::Body as _;
    /// use regrant::response::ResponseBody;
    ///
    /// let body = ResponseBody::<String>::default();
    /// assert!(body.is_end_stream());
    /// ```
    pub struct ResponseBody<B> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProjection]
    enum Inner<B> {
        Gateway { #[pin] body: B },
        Own { #[pin] body: OwnBody },
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn of_gateway(body: B) -> Self {
        Self {
            inner: Inner::Gateway { body },
        }
    }
}

impl<B> From<OwnBody> for ResponseBody<B> {
    fn from(body: OwnBody) -> Self {
        Self {
            inner: Inner::Own { body },
        }
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            InnerProjection::Gateway { body } => body.poll_frame(context),
            InnerProjection::Own { body } => body
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Gateway { body } => body.is_end_stream(),
            Inner::Own { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Gateway { body } => body.size_hint(),
            Inner::Own { body } => body.size_hint(),
        }
    }
}

impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        OwnBody::default().into()
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A body may hold tokens.
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

pin_project! {
    /// A short body of ours: an error, or what the token endpoint answers.
    ///
    /// ```
    /// use http_body::Body as _;
    /// use regrant::response::OwnBody;
    ///
    /// assert_eq!(OwnBody::default().size_hint().exact(), Some(0));
    /// ```
    #[derive(Clone, Default)]
    pub struct OwnBody {
        #[pin]
        bytes: Full<Bytes>,
    }
}

impl From<String> for OwnBody {
    fn from(text: String) -> Self {
        Self {
            bytes: Full::new(Bytes::from(text)),
        }
    }
}

impl Body for OwnBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.project().bytes.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.bytes.size_hint()
    }
}

impl fmt::Debug for OwnBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnBody").finish_non_exhaustive()
    }
}
