//! The service: sorts a request out, without waiting for anything.
//!
//! What takes waiting, the store or the provider, is left to the response
//! future.

use std::mem;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use http::Request;
use http::Response;
use http_body::Body;
use tower::Service;

use crate::BoxError;
use crate::authenticate;
use crate::authenticate::Cached;
use crate::cross_origin;
use crate::endpoint::Endpoints;
use crate::exchange::Exchange;
use crate::future::ResponseFuture;
use crate::layer::RefreshLayer;
use crate::rejection::Rejection;
use crate::replay::ReplayBody;
use crate::response::ResponseBody;

/// A gateway wrapped by a [`RefreshLayer`].
///
/// ```
/// use regrant::service::Refresh;
///
/// fn is_wrapped<S>(_service: &Refresh<S>) {}
/// # let _unused = is_wrapped::<()>;
/// ```
#[derive(Clone, Debug)]
pub struct Refresh<S> {
    inner: S,
    layer: RefreshLayer,
}

impl<S> Refresh<S> {
    pub(crate) fn new(inner: S, layer: RefreshLayer) -> Self {
        Self { inner, layer }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Refresh<S>
where
    S: Service<Request<ReplayBody<ReqBody>>, Response = Response<ResBody>> + Clone,
    ReqBody: Body<Data = Bytes> + Send + 'static,
    ReqBody::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // The service that was polled ready is the one to call: its clone need
        // not be ready.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let RefreshLayer { core, route } = &self.layer;

        if route.serves_endpoints && Endpoints::serves(core, request.uri().path()) {
            let endpoints = Endpoints::new(Arc::clone(core));
            return ResponseFuture::endpoint(endpoints.respond(request));
        }

        let is_cross_origin = route.cross_origin && cross_origin::is_asked_for(request.headers());
        if is_cross_origin
            && !route.passes_through
            && cross_origin::is_preflight(request.method(), request.headers())
        {
            return ResponseFuture::rejected(cross_origin::preflight(request.headers()));
        }

        let (head, body) = request.into_parts();
        let cached = authenticate::from_memory(core, route, &head);
        let exchange = || Exchange::new(inner, self.layer.clone(), head, body);
        let future = match cached {
            Ok(Cached::Ready(authenticated)) => ResponseFuture::call(exchange(), authenticated),
            Ok(Cached::Pending(pending)) => ResponseFuture::resolve(exchange(), pending),
            Err(Rejection::NoBearer) if route.passes_through => {
                return ResponseFuture::pass_through(exchange());
            }
            Err(rejection) => ResponseFuture::rejected(rejection.into_response(&route.challenges)),
        };
        future.cross_origin(is_cross_origin)
    }
}
