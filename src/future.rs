//! The response future: one request, from the first look to the last byte.
//!
//! ```text
//! Resolve ─► Call ─► (the upstream says: expired) ─► Refresh ─► Ready ─► Replay
//! ```
//!
//! The gateway's own future is pinned in place; only our waiting is boxed.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;
use tower::Service;

use crate::BoxError;
use crate::authenticate;
use crate::authenticate::Authenticated;
use crate::authenticate::Pending;
use crate::credential::Snapshot;
use crate::cross_origin;
use crate::error::RefreshErrorKind;
use crate::exchange::Exchange;
use crate::refresh::Want;
use crate::rejection::Rejection;
use crate::replay::ReplayBody;
use crate::response::OwnBody;
use crate::response::ResponseBody;
use crate::telemetry;

pin_project! {
    /// The future of [`Refresh`](crate::service::Refresh).
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<ReplayBody<B>>>,
    {
        #[pin]
        state: State<S::Future, S::Response, Request<ReplayBody<B>>>,
        // `None` where there is nothing to replay.
        exchange: Option<Exchange<S, B>>,
        // A page of another origin is to read the response.
        is_cross_origin: bool,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, Res, Req> {
        // A route of ours.
        Endpoint { future: BoxFuture<'static, Response<OwnBody>> },
        // Refused without waiting.
        Rejected { response: Option<Response<OwnBody>> },
        // The store, or the provider, has to be asked first.
        Resolve { future: BoxFuture<'static, Result<Authenticated, Rejection>> },
        // The gateway is at it, without a credential.
        Pass { #[pin] future: F },
        // The gateway is at it, for the first time.
        Call { #[pin] future: F, authenticated: Option<Authenticated> },
        // The upstream refused the credential.
        Refresh {
            future: BoxFuture<'static, Result<Arc<Snapshot>, Rejection>>,
            authenticated: Option<Authenticated>,
            refused: Option<Res>,
        },
        // There is a newer credential; the gateway may need a moment.
        Ready { request: Option<Req>, authenticated: Option<Authenticated> },
        // The gateway is at it for the second time; what it says is final.
        Replay { #[pin] future: F, authenticated: Option<Authenticated> },
        // Polled to its end.
        Done,
    }
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<ReplayBody<B>>>,
{
    pub(crate) fn endpoint(future: BoxFuture<'static, Response<OwnBody>>) -> Self {
        Self {
            state: State::Endpoint { future },
            exchange: None,
            is_cross_origin: false,
        }
    }

    pub(crate) fn cross_origin(mut self, is_cross_origin: bool) -> Self {
        self.is_cross_origin = is_cross_origin;
        self
    }

    pub(crate) fn rejected(response: Response<OwnBody>) -> Self {
        Self {
            state: State::Rejected {
                response: Some(response),
            },
            exchange: None,
            is_cross_origin: false,
        }
    }
}

impl<S, B, ResBody> ResponseFuture<S, B>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResBody>>,
    B: Body<Data = Bytes>,
{
    pub(crate) fn pass_through(exchange: Exchange<S, B>) -> Self {
        Self {
            state: exchange
                .pass()
                .map_or(State::Done, |future| State::Pass { future }),
            exchange: None,
            is_cross_origin: false,
        }
    }

    pub(crate) fn call(mut exchange: Exchange<S, B>, authenticated: Authenticated) -> Self {
        let state = send(&mut exchange, authenticated);
        Self {
            state,
            exchange: Some(exchange),
            is_cross_origin: false,
        }
    }

    pub(crate) fn resolve(exchange: Exchange<S, B>, pending: Pending) -> Self {
        let layer = exchange.layer.clone();
        Self {
            state: State::Resolve {
                future: Box::pin(async move {
                    authenticate::resolve(&layer.core, &layer.route, pending).await
                }),
            },
            exchange: Some(exchange),
            is_cross_origin: false,
        }
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResBody>>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(self.as_mut().poll_response(context))?;
        if self.is_cross_origin {
            cross_origin::expose(response.headers_mut());
        }
        Poll::Ready(Ok(response))
    }
}

impl<S, B, ResBody> ResponseFuture<S, B>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResBody>>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    fn poll_response(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<ResBody>>, S::Error>> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Endpoint { future } => {
                    let response = ready!(future.as_mut().poll(context));
                    return this.state.end(response.map(ResponseBody::from));
                }
                StateProjection::Rejected { response } => {
                    let response = response.take().unwrap_or_default();
                    return this.state.end(response.map(ResponseBody::from));
                }
                StateProjection::Pass { future } => {
                    let response = ready!(future.poll(context))?;
                    return this.state.end(response.map(ResponseBody::of_gateway));
                }

                StateProjection::Resolve { future } => {
                    let resolved = ready!(future.as_mut().poll(context));
                    let exchange = present(this.exchange);
                    match resolved {
                        Ok(authenticated) => send(exchange, authenticated),
                        Err(rejection) => reject(exchange, rejection),
                    }
                }
                StateProjection::Call {
                    future,
                    authenticated,
                } => {
                    let (head, body) = ready!(future.poll(context))?.into_parts();
                    let exchange = present(this.exchange);
                    let is_expired = exchange.is_expired(&head);
                    let response = Response::from_parts(head, body);
                    match authenticated.take() {
                        Some(authenticated) if is_expired => {
                            refresh_after(exchange, authenticated, response)
                        }
                        sent => {
                            if let Some(Authenticated { cell, snapshot, .. }) = sent {
                                cell.note(snapshot.generation, false);
                            }
                            return this.state.end(exchange.finish(response));
                        }
                    }
                }
                StateProjection::Refresh {
                    future,
                    authenticated,
                    refused,
                } => {
                    let refreshed = ready!(future.as_mut().poll(context));
                    let exchange = present(this.exchange);
                    match (refreshed, authenticated.take(), refused.take()) {
                        (Ok(snapshot), Some(mut authenticated), _) => {
                            authenticated.snapshot = snapshot;
                            replay(exchange, authenticated)
                        }
                        // Nothing better is to be had: the upstream's word stands.
                        (
                            Err(Rejection::Refresh(error) | Rejection::NotConnected(error)),
                            _,
                            Some(response),
                        ) if error.kind() == RefreshErrorKind::NotRefreshable => {
                            return this.state.end(exchange.finish(response));
                        }
                        (Err(rejection), _, _) => reject(exchange, rejection),
                        (Ok(_), None, _) => State::Done,
                    }
                }
                StateProjection::Ready {
                    request,
                    authenticated,
                } => {
                    let exchange = present(this.exchange);
                    ready!(exchange.inner.poll_ready(context))?;
                    request.take().map_or(State::Done, |request| State::Replay {
                        future: exchange.inner.call(request),
                        authenticated: authenticated.take(),
                    })
                }
                StateProjection::Replay {
                    future,
                    authenticated,
                } => {
                    let (head, body) = ready!(future.poll(context))?.into_parts();
                    let exchange = present(this.exchange);
                    if let Some(authenticated) = authenticated
                        && exchange.ran_out(&head, authenticated)
                    {
                        reject(exchange, Rejection::RanOut)
                    } else {
                        let response = exchange.finish(Response::from_parts(head, body));
                        return this.state.end(response);
                    }
                }
                StateProjection::Done => polled_after_end(),
            };
            this.state.set(next);
        }
    }
}

impl<F, Res, Req> State<F, Res, Req> {
    fn end<T, E>(mut self: Pin<&mut Self>, response: T) -> Poll<Result<T, E>> {
        self.set(Self::Done);
        Poll::Ready(Ok(response))
    }
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<ReplayBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

type StateOf<S, B, ResBody> = State<
    <S as Service<Request<ReplayBody<B>>>>::Future,
    Response<ResBody>,
    Request<ReplayBody<B>>,
>;

fn send<S, B, ResBody>(
    exchange: &mut Exchange<S, B>,
    authenticated: Authenticated,
) -> StateOf<S, B, ResBody>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResBody>>,
    B: Body<Data = Bytes>,
{
    match exchange.send(&authenticated) {
        Ok(Some(future)) => State::Call {
            future,
            authenticated: Some(authenticated),
        },
        Ok(None) => State::Done,
        Err(error) => reject(exchange, error.into()),
    }
}

fn refresh_after<S, B, ResBody>(
    exchange: &Exchange<S, B>,
    authenticated: Authenticated,
    response: Response<ResBody>,
) -> StateOf<S, B, ResBody>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResBody>>,
{
    let core = Arc::clone(&exchange.layer.core);
    let sent = authenticated.clone();
    let want = Want::NewerThan(authenticated.snapshot.generation);
    State::Refresh {
        future: Box::pin(async move { authenticate::refreshed(&core, &sent, want).await }),
        authenticated: Some(authenticated),
        refused: Some(response),
    }
}

fn replay<S, B, ResBody>(
    exchange: &mut Exchange<S, B>,
    authenticated: Authenticated,
) -> StateOf<S, B, ResBody>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResBody>>,
    B: Body<Data = Bytes>,
{
    match exchange.replay(&authenticated) {
        Ok(Some(request)) => {
            telemetry::count(&authenticated.cell.provider, telemetry::Outcome::Replayed);
            State::Ready {
                request: Some(request),
                authenticated: Some(authenticated),
            }
        }
        Ok(None) => reject(exchange, Rejection::NotReplayable),
        Err(error) => reject(exchange, error.into()),
    }
}

fn reject<S, B, ResBody>(exchange: &Exchange<S, B>, rejection: Rejection) -> StateOf<S, B, ResBody>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResBody>>,
{
    State::Rejected {
        response: Some(rejection.into_response(&exchange.layer.route.challenges)),
    }
}

/// Every state that is left through a call has an exchange.
fn present<T>(exchange: &mut Option<T>) -> &mut T {
    match exchange {
        Some(exchange) => exchange,
        None => polled_after_end(),
    }
}

/// The contract of `Future`: whoever polls again after the end has a bug.
#[expect(clippy::panic, reason = "as std's own futures do")]
fn polled_after_end() -> ! {
    panic!("`ResponseFuture` polled after completion")
}
