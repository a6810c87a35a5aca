//! Request bodies that can be sent twice.
//!
//! The body streams to the gateway as it arrives; what has passed is kept, up
//! to a bound. If the upstream then refuses the credential, a second body
//! repeats what has passed and goes on where the first one stopped: the same
//! bytes, the same trailers. Over the bound nothing is kept, and the request
//! cannot be replayed.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::task::ready;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;

use crate::BoxError;
use crate::sync::lock;

/// The body of a request as the gateway sees it: the client's, or its replay.
///
/// A handler that is not generic over its body names this type, with the body
/// of its server inside: `Request<ReplayBody<Incoming>>`.
///
/// ```
/// use http_body::Body as _;
/// use regrant::replay::ReplayBody;
///
/// fn handler(request: http::Request<ReplayBody<String>>) -> bool {
///     request.body().is_end_stream()
/// }
/// # let _handler: fn(http::Request<ReplayBody<String>>) -> bool = handler;
/// ```
pub struct ReplayBody<B> {
    /// `None` for an empty body, which costs nothing to repeat.
    shared: Option<Arc<Mutex<Shared<B>>>>,
    /// Which sending this is: a body of an earlier one must not take frames
    /// away from the present one.
    sending: u8,
    /// How many of the kept frames this body has yielded.
    yielded: usize,
    gave_trailers: bool,
}

impl<B: Body<Data = Bytes>> ReplayBody<B> {
    /// The body to send first, and what may repeat it.
    pub(crate) fn recording(body: B, limit: usize) -> (Self, Recording<B>) {
        let shared = (!body.is_end_stream()).then(|| {
            let is_too_long = body.size_hint().lower() > limit as u64;
            Arc::new(Mutex::new(Shared {
                body: Box::pin(body),
                kept: (!is_too_long).then(Vec::new),
                kept_bytes: 0,
                limit,
                trailers: None,
                has_ended: false,
                sending: 0,
                waiting: None,
            }))
        });
        let first = Self {
            shared: shared.clone(),
            sending: 0,
            yielded: 0,
            gave_trailers: false,
        };
        (first, Recording(shared))
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(shared) = &this.shared else {
            return Poll::Ready(None);
        };
        let mut shared = lock(shared);
        if shared.sending != this.sending {
            return Poll::Ready(Some(Err("the request is being replayed".into())));
        }
        if let Some(data) = shared.kept.as_ref().and_then(|kept| kept.get(this.yielded)) {
            this.yielded += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if !shared.has_ended
            && let Some(frame) = ready!(shared.poll_body(context))
        {
            if let Ok(frame) = &frame {
                this.yielded += usize::from(frame.is_data());
                this.gave_trailers |= frame.is_trailers();
            }
            return Poll::Ready(Some(frame));
        }
        if this.gave_trailers {
            return Poll::Ready(None);
        }
        this.gave_trailers = true;
        Poll::Ready(shared.trailers.clone().map(|map| Ok(Frame::trailers(map))))
    }

    fn is_end_stream(&self) -> bool {
        let Some(shared) = &self.shared else {
            return true;
        };
        let shared = lock(shared);
        shared.has_no_more_kept(self.yielded)
            && (self.gave_trailers || shared.trailers.is_none())
            && (shared.has_ended || shared.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(shared) = &self.shared else {
            return SizeHint::with_exact(0);
        };
        let shared = lock(shared);
        let repeated: u64 = shared
            .kept
            .iter()
            .flatten()
            .skip(self.yielded)
            .map(|data| data.len() as u64)
            .sum();
        if shared.has_ended {
            return SizeHint::with_exact(repeated);
        }
        let rest = shared.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(repeated));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(repeated)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is kept is the client's business.
        f.debug_struct("ReplayBody")
            .field("sending", &self.sending)
            .finish_non_exhaustive()
    }
}

/// Makes the second body.
pub(crate) struct Recording<B>(Option<Arc<Mutex<Shared<B>>>>);

impl<B> Recording<B> {
    /// The body to send once more; `None` if too much has passed, or if reading
    /// it from the client failed.
    pub(crate) fn replay(self) -> Option<ReplayBody<B>> {
        let sending = match &self.0 {
            None => 0,
            Some(shared) => {
                let mut shared = lock(shared);
                shared.kept.as_ref()?;
                shared.sending += 1;
                // Its frames will not come any more: it must notice and end.
                if let Some(waker) = shared.waiting.take() {
                    waker.wake();
                }
                shared.sending
            }
        };
        Some(ReplayBody {
            shared: self.0,
            sending,
            yielded: 0,
            gave_trailers: false,
        })
    }
}

struct Shared<B> {
    body: Pin<Box<B>>,
    /// What has passed; `None` once it was too much.
    kept: Option<Vec<Bytes>>,
    kept_bytes: usize,
    limit: usize,
    trailers: Option<HeaderMap>,
    has_ended: bool,
    sending: u8,
    /// Whoever waits for the next frame.
    waiting: Option<Waker>,
}

impl<B> Shared<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = self.body.as_mut().poll_frame(context) else {
            self.waiting = Some(context.waker().clone());
            return Poll::Pending;
        };
        match &frame {
            None => self.has_ended = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data);
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                }
            }
            // The client's half is broken: there is nothing to repeat.
            Some(Err(_)) => self.kept = None,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn keep(&mut self, data: &Bytes) {
        // There is no third sending to keep anything for.
        if self.sending > 0 {
            return;
        }
        self.kept_bytes = self.kept_bytes.saturating_add(data.len());
        if self.kept_bytes > self.limit {
            self.kept = None;
        } else if let Some(kept) = &mut self.kept {
            kept.push(data.clone());
        }
    }
}

impl<B> Shared<B> {
    fn has_no_more_kept(&self, yielded: usize) -> bool {
        self.kept.as_ref().is_none_or(|kept| yielded >= kept.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http::HeaderValue;
    use http_body_util::BodyExt as _;
    use http_body_util::Full;

    use super::*;

    /// Frames as they come, `None` for a pause.
    struct Script(VecDeque<Option<Frame<Bytes>>>);

    impl Body for Script {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            match self.0.pop_front() {
                Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
                Some(None) => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                None => Poll::Ready(None),
            }
        }
    }

    fn script(data: &[&'static str]) -> Script {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("7"));
        let frames = data
            .iter()
            .flat_map(|data| [None, Some(Frame::data(Bytes::from_static(data.as_bytes())))])
            .chain([Some(Frame::trailers(trailers))]);
        Script(frames.collect())
    }

    async fn text<B>(body: ReplayBody<B>) -> (String, bool)
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let collected = body.collect().await.unwrap();
        let has_trailers = collected.trailers().is_some();
        let bytes = collected.to_bytes();
        (String::from_utf8(bytes.to_vec()).unwrap(), has_trailers)
    }

    #[tokio::test]
    async fn a_replay_has_the_same_bytes_and_trailers() {
        let (first, recording) = ReplayBody::recording(script(&["one ", "two ", "three"]), 100);

        assert_eq!(text(first).await, ("one two three".to_owned(), true));
        let second = recording.replay().unwrap();
        assert_eq!(second.size_hint().exact(), Some(13));
        assert!(!second.is_end_stream());
        assert_eq!(text(second).await, ("one two three".to_owned(), true));
    }

    #[tokio::test]
    async fn a_replay_goes_on_where_the_first_sending_stopped() {
        let (mut first, recording) = ReplayBody::recording(script(&["one ", "two ", "three"]), 100);
        let frame = first.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "one ");

        let second = recording.replay().unwrap();

        assert!(first.frame().await.unwrap().is_err(), "it is superseded");
        assert_eq!(text(second).await, ("one two three".to_owned(), true));
    }

    #[tokio::test]
    async fn trailers_are_repeated_though_the_first_reader_stopped_at_them() {
        let (mut first, recording) = ReplayBody::recording(script(&["one "]), 100);
        while !first.frame().await.unwrap().unwrap().is_trailers() {}

        let second = recording.replay().unwrap();

        assert_eq!(text(second).await, ("one ".to_owned(), true));
    }

    #[tokio::test]
    async fn the_second_sending_keeps_nothing_more() {
        let data = vec!["12345"; 100];
        let (mut first, recording) = ReplayBody::recording(script(&data), 9);
        let _frame = first.frame().await.unwrap().unwrap();

        let second = recording.replay().unwrap();
        let shared = second.shared.clone().unwrap();

        assert_eq!(text(second).await, ("12345".repeat(100), true));
        assert_eq!(lock(&shared).kept.as_ref().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_first_sending_that_waits_for_a_frame_is_woken_when_it_is_over() {
        let (_sender, body) = http_body_util::channel::Channel::<Bytes, BoxError>::new(1);
        let (mut first, recording) = ReplayBody::recording(body, 9);
        let mut waiting = tokio_test::task::spawn(first.frame());
        tokio_test::assert_pending!(waiting.poll());

        let _second = recording.replay().unwrap();

        assert!(waiting.is_woken());
        let frame = tokio_test::assert_ready!(waiting.poll()).unwrap();
        assert!(frame.is_err(), "it is superseded");
    }

    #[tokio::test]
    async fn what_is_over_the_bound_passes_and_is_not_kept() {
        let (first, recording) = ReplayBody::recording(script(&["12345", "67890"]), 9);

        assert_eq!(text(first).await, ("1234567890".to_owned(), true));
        assert!(recording.replay().is_none());

        let (_first, recording) = ReplayBody::recording(Full::<Bytes>::from("1234567890"), 9);
        assert!(recording.replay().is_none(), "known to be too long");
    }

    #[tokio::test]
    async fn an_empty_body_is_repeated_without_being_kept() {
        let (first, recording) = ReplayBody::recording(Full::<Bytes>::default(), 0);
        assert!(first.is_end_stream());
        assert_eq!(first.size_hint().exact(), Some(0));
        assert_eq!(text(first).await.0, "");
        assert!(recording.replay().unwrap().is_end_stream());
    }

    #[tokio::test]
    async fn the_size_of_a_known_body_stays_known() {
        let (first, recording) = ReplayBody::recording(Full::<Bytes>::from("12345"), 9);
        assert_eq!(first.size_hint().exact(), Some(5));
        assert_eq!(text(first).await.0, "12345");
        assert_eq!(recording.replay().unwrap().size_hint().exact(), Some(5));
    }
}
