//! Upstreams that hide the refusal in a body: a 200 with a JSON error inside.
//!
//! An inner layer, for those routes that need it: it reads JSON answers up to a
//! bound, asks you, and marks what you call expired with [`Expired`], which the
//! [`RefreshLayer`](crate::RefreshLayer) around it understands. Everything
//! else passes untouched: streams, bodies that are compressed, too long or too
//! slow.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use pin_project_lite::pin_project;
use serde_json::Value;
use tokio::time::Sleep;
use tower::Layer;
use tower::Service;

use super::Expired;

/// Finds refusals in the JSON bodies of the wrapped service.
///
/// ```
/// use regrant::classify::body::ExpiredInBodyLayer;
/// use serde_json::Value;
///
/// // MCP: a tool that failed because the upstream answered it 401.
/// let layer = ExpiredInBodyLayer::new(|_head, answer: &Value| {
///     let result = &answer["result"];
///     result["isError"] == true
///         && result["content"][0]["text"].as_str().is_some_and(|text| text.contains("401"))
/// });
/// # let _layer = layer;
/// ```
///
/// It goes inside, next to the gateway:
/// `ServiceBuilder::new().layer(regrant.layer("linear")?).layer(expired_in_body)`.
#[must_use = "a layer does nothing until it is added to a service"]
pub struct ExpiredInBodyLayer<F> {
    judge: Arc<F>,
    limit: usize,
    patience: Duration,
}

impl<F> ExpiredInBodyLayer<F>
where
    F: Fn(&Parts, &Value) -> bool,
{
    /// Asks `judge` about the head and the body of each JSON answer. A `true`
    /// costs a refresh and a replay of the request, so it should mean that the
    /// upstream refused the access token, before it did anything.
    pub fn new(judge: F) -> Self {
        Self {
            judge: Arc::new(judge),
            limit: DEFAULT_LIMIT,
            patience: DEFAULT_PATIENCE,
        }
    }

    /// How many bytes of a body are read; a longer one passes unread. The
    /// default is 16 KiB.
    pub fn limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// How long a response is held back until its body is there. The default is
    /// 1 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl<F> Clone for ExpiredInBodyLayer<F> {
    fn clone(&self) -> Self {
        Self {
            judge: Arc::clone(&self.judge),
            limit: self.limit,
            patience: self.patience,
        }
    }
}

impl<F> fmt::Debug for ExpiredInBodyLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExpiredInBodyLayer")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl<S, F> Layer<S> for ExpiredInBodyLayer<F> {
    type Service = ExpiredInBody<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        ExpiredInBody {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service wrapped by an [`ExpiredInBodyLayer`].
///
/// ```
/// use regrant::classify::body::ExpiredInBody;
///
/// fn is_wrapped<S, F>(_service: &ExpiredInBody<S, F>) {}
/// # let _unused = is_wrapped::<(), ()>;
/// ```
#[derive(Debug)]
pub struct ExpiredInBody<S, F> {
    inner: S,
    layer: ExpiredInBodyLayer<F>,
}

impl<S: Clone, F> Clone for ExpiredInBody<S, F> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<S, F, ReqBody, ResBody> Service<Request<ReqBody>> for ExpiredInBody<S, F>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    F: Fn(&Parts, &Value) -> bool,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<InspectedBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody, F>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        ResponseFuture {
            future: self.inner.call(request),
            layer: self.layer.clone(),
            reading: None,
        }
    }
}

pin_project! {
    /// The future of [`ExpiredInBody`].
    pub struct ResponseFuture<R, B: Body, F> {
        #[pin]
        future: R,
        layer: ExpiredInBodyLayer<F>,
        reading: Option<Reading<B>>,
    }
}

impl<R, B, E, F> Future for ResponseFuture<R, B, F>
where
    R: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
    F: Fn(&Parts, &Value) -> bool,
{
    type Output = Result<Response<InspectedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            if let Some(reading) = this.reading.as_mut() {
                ready!(reading.poll(context, this.layer.limit));
                if let Some(reading) = this.reading.take() {
                    return Poll::Ready(Ok(reading.judged(&*this.layer.judge)));
                }
            }
            let response = ready!(this.future.as_mut().poll(context))?;
            let (head, body) = response.into_parts();
            let is_short = body.size_hint().lower() <= this.layer.limit as u64;
            if !(is_json(&head) && is_short) {
                let body = InspectedBody {
                    inner: Inspected::Unread { body },
                };
                return Poll::Ready(Ok(Response::from_parts(head, body)));
            }
            *this.reading = Some(Reading {
                head,
                frames: VecDeque::new(),
                bytes: 0,
                is_whole: false,
                rest: Box::pin(body),
                patience: Box::pin(tokio::time::sleep(this.layer.patience)),
            });
        }
    }
}

impl<R, B: Body, F> fmt::Debug for ResponseFuture<R, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// A response whose body is being looked at.
struct Reading<B: Body> {
    head: Parts,
    frames: VecDeque<Result<Frame<Bytes>, B::Error>>,
    bytes: usize,
    is_whole: bool,
    rest: Pin<Box<B>>,
    patience: Pin<Box<Sleep>>,
}

impl<B: Body<Data = Bytes>> Reading<B> {
    /// Ready when the body has ended, is too long or too slow, or broke.
    fn poll(&mut self, context: &mut Context<'_>, limit: usize) -> Poll<()> {
        loop {
            let Poll::Ready(frame) = self.rest.as_mut().poll_frame(context) else {
                return self.patience.as_mut().poll(context);
            };
            let Some(frame) = frame else {
                self.is_whole = true;
                return Poll::Ready(());
            };
            let data = frame.as_ref().ok().and_then(Frame::data_ref);
            self.bytes += data.map_or(0, Bytes::len);
            let is_broken = frame.is_err();
            self.frames.push_back(frame);
            if is_broken || self.bytes > limit {
                return Poll::Ready(());
            }
        }
    }

    fn judged(mut self, judge: impl Fn(&Parts, &Value) -> bool) -> Response<InspectedBody<B>> {
        if self.is_whole {
            let data = self.frames.iter().flatten().filter_map(Frame::data_ref);
            let text = data.fold(Vec::with_capacity(self.bytes), |mut text, data| {
                text.extend_from_slice(data);
                text
            });
            if serde_json::from_slice(&text).is_ok_and(|value| judge(&self.head, &value)) {
                self.head.extensions.insert(Expired);
            }
        }
        let body = InspectedBody {
            inner: Inspected::Read {
                frames: self.frames,
                rest: self.rest,
                is_whole: self.is_whole,
            },
        };
        Response::from_parts(self.head, body)
    }
}

pin_project! {
    /// The body of a response that was looked at: the same bytes and trailers.
    ///
    /// ```
    /// use regrant::classify::body::InspectedBody;
    ///
    /// fn is_inspected<B: http_body::Body>(_body: &InspectedBody<B>) {}
    /// # let _unused = is_inspected::<String>;
    /// ```
    pub struct InspectedBody<B: Body> {
        #[pin]
        inner: Inspected<B>,
    }
}

pin_project! {
    #[project = InspectedProjection]
    enum Inspected<B: Body> {
        Unread { #[pin] body: B },
        Read {
            frames: VecDeque<Result<Frame<Bytes>, B::Error>>,
            rest: Pin<Box<B>>,
            is_whole: bool,
        },
    }
}

impl<B: Body<Data = Bytes>> Body for InspectedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            InspectedProjection::Unread { body } => body.poll_frame(context),
            InspectedProjection::Read {
                frames,
                rest,
                is_whole,
            } => match frames.pop_front() {
                Some(frame) => Poll::Ready(Some(frame)),
                None if *is_whole => Poll::Ready(None),
                None => rest.as_mut().poll_frame(context),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inspected::Unread { body } => body.is_end_stream(),
            Inspected::Read {
                frames,
                rest,
                is_whole,
            } => frames.is_empty() && (*is_whole || rest.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inspected::Unread { body } => body.size_hint(),
            Inspected::Read {
                frames,
                rest,
                is_whole,
            } => {
                let data = frames.iter().flatten().filter_map(Frame::data_ref);
                let kept: u64 = data.map(|data| data.len() as u64).sum();
                if *is_whole {
                    return SizeHint::with_exact(kept);
                }
                let rest = rest.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(kept));
                if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(kept)) {
                    hint.set_upper(upper);
                }
                hint
            }
        }
    }
}

impl<B: Body + Default> Default for InspectedBody<B> {
    fn default() -> Self {
        Self {
            inner: Inspected::Unread { body: B::default() },
        }
    }
}

impl<B: Body> fmt::Debug for InspectedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InspectedBody").finish_non_exhaustive()
    }
}

/// `application/json`, or something built on it (RFC 6839 §3.1).
fn is_json(head: &Parts) -> bool {
    let media = head.headers.get(CONTENT_TYPE).and_then(|value| {
        let text = value.to_str().ok()?;
        text.split(';').next()
    });
    media.is_some_and(|media| {
        let media = media.trim().to_ascii_lowercase();
        media == "application/json" || media.ends_with("+json")
    })
}

const DEFAULT_LIMIT: usize = 16 * 1024;
const DEFAULT_PATIENCE: Duration = Duration::from_secs(1);
