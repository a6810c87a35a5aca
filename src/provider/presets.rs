//! What is known of some providers: endpoints, and where they leave RFC 6749.
//!
//! Each preset is a builder with a few settings made; all can be made again.
//!
//! ```
//! use regrant::provider::presets;
//! use regrant::secret::ClientSecret;
//!
//! let linear = presets::linear("my-gateway", ClientSecret::new("…")).build()?;
//! # Ok::<_, regrant::error::ConfigError>(())
//! ```

use super::Expiry;
use super::ProviderErrorKind;
use super::oauth2::ClientAuthentication;
use super::oauth2::OAuth2Provider;
use super::oauth2::OAuth2ProviderBuilder;
use super::oauth2::RequestShape;
use crate::secret::ClientSecret;

/// User tokens of a GitHub App. Errors come with status 200; without the App's
/// option to let user tokens expire, they never do.
pub fn github(client_id: impl Into<String>, secret: ClientSecret) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder("https://github.com/login/oauth/access_token", client_id)
        .client_authentication(ClientAuthentication::Post(secret))
        .response(|shape| {
            shape
                .expiry_if_missing(Expiry::Never)
                .error_kind("bad_refresh_token", ProviderErrorKind::Terminal)
                .error_kind("bad_verification_code", ProviderErrorKind::Terminal)
                .error_kind(
                    "incorrect_client_credentials",
                    ProviderErrorKind::Misconfigured,
                )
        })
}

/// Google. It returns a refresh token only to a first consent, with
/// `access_type=offline`; refreshes keep it.
pub fn google(client_id: impl Into<String>, secret: ClientSecret) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder("https://oauth2.googleapis.com/token", client_id)
        .revocation_endpoint("https://oauth2.googleapis.com/revoke")
        .client_authentication(ClientAuthentication::Post(secret))
        .response(|shape| {
            shape
                .error_kind("deleted_client", ProviderErrorKind::Misconfigured)
                .error_kind("disabled_client", ProviderErrorKind::Misconfigured)
        })
}

/// Microsoft Entra ID, version 2.0. The tenant is a GUID or a word such as
/// `organizations`. What is asked for is named by this scope in both legs, never by
/// `resource`, which refreshes refuse (AADSTS9010010); `offline_access` in it
/// keeps the refresh tokens coming.
pub fn microsoft_entra(
    client_id: impl Into<String>,
    secret: ClientSecret,
    scope: impl Into<String>,
) -> OAuth2ProviderBuilder {
    let scope = scope.into();
    OAuth2Provider::builder(
        "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token",
        client_id,
    )
    .client_authentication(ClientAuthentication::Post(secret))
    .on_exchange(|leg| leg.scope(&scope))
    .on_refresh(|leg| leg.scope(&scope))
    .response(|shape| {
        shape
            // Only the user can do what they ask for.
            .error_kind("interaction_required", ProviderErrorKind::Terminal)
            .error_kind("consent_required", ProviderErrorKind::Terminal)
            .error_kind("login_required", ProviderErrorKind::Terminal)
            .error_kind("invalid_resource", ProviderErrorKind::Misconfigured)
            // "The server terminated an operation because it encountered a
            // client request loop": that passes, and the token is untouched.
            .error_kind_if(
                "invalid_grant",
                "error_codes",
                "50196",
                ProviderErrorKind::Transient,
            )
    })
}

/// Slack, bot tokens. Errors come as `"ok": false` with status 200; without
/// token rotation tokens never expire. For user tokens add
/// `.response(|shape| shape.access_token("authed_user.access_token"))`, and what
/// else comes along with it is read there too.
pub fn slack(client_id: impl Into<String>, secret: ClientSecret) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder("https://slack.com/api/oauth.v2.access", client_id)
        .client_authentication(ClientAuthentication::Basic(secret))
        .request(|shape| shape.scope_separator(','))
        .response(|shape| {
            shape
                .expiry_if_missing(Expiry::Never)
                .error_kind("invalid_refresh_token", ProviderErrorKind::Terminal)
                .error_kind("token_revoked", ProviderErrorKind::Terminal)
                .error_kind("token_expired", ProviderErrorKind::Terminal)
                .error_kind("account_inactive", ProviderErrorKind::Terminal)
                .error_kind("invalid_code", ProviderErrorKind::Terminal)
                .error_kind("code_already_used", ProviderErrorKind::Terminal)
                .error_kind("invalid_client_id", ProviderErrorKind::Misconfigured)
                .error_kind("bad_client_secret", ProviderErrorKind::Misconfigured)
                // With status 200.
                .error_kind("fatal_error", ProviderErrorKind::Transient)
                .error_kind("internal_error", ProviderErrorKind::Transient)
                .error_kind("ratelimited", ProviderErrorKind::Transient)
                .error_kind("request_timeout", ProviderErrorKind::Transient)
                .error_kind("service_unavailable", ProviderErrorKind::Transient)
        })
}

/// Atlassian (3LO). Refresh tokens rotate; requests are JSON, and the exchange
/// of a code names the API as audience.
pub fn atlassian(client_id: impl Into<String>, secret: ClientSecret) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder("https://auth.atlassian.com/oauth/token", client_id)
        .client_authentication(ClientAuthentication::Post(secret))
        .request(RequestShape::json)
        .on_exchange(|leg| leg.audience("api.atlassian.com"))
        .response(|shape| {
            // One code for a client that is refused and for a token that is dead.
            shape.error_kind_if(
                "unauthorized_client",
                "error_description",
                "refresh_token is invalid",
                ProviderErrorKind::Terminal,
            )
        })
}

/// Linear.
pub fn linear(client_id: impl Into<String>, secret: ClientSecret) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder("https://api.linear.app/oauth/token", client_id)
        .revocation_endpoint("https://api.linear.app/oauth/revoke")
        .client_authentication(ClientAuthentication::Post(secret))
        .request(|shape| shape.scope_separator(','))
}

/// Notion. Requests are JSON, answers have no expiry, and errors are in `code`.
pub fn notion(client_id: impl Into<String>, secret: ClientSecret) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder("https://api.notion.com/v1/oauth/token", client_id)
        .revocation_endpoint("https://api.notion.com/v1/oauth/revoke")
        .client_authentication(ClientAuthentication::Basic(secret))
        .request(|shape| shape.json().header("Notion-Version", "2025-09-03"))
        .response(|shape| shape.error("code"))
}

/// Salesforce, on the user's My Domain, whose name is the tenant. Answers have
/// no expiry: it is a setting of the user's organization, and its end shows as a
/// 401 of the upstream. Elsewhere the endpoints have to be set, both of them:
/// `.token_endpoint("https://{tenant}.sandbox.my.salesforce.com/services/oauth2/token")`
/// and `.revocation_endpoint("…/services/oauth2/revoke")` for sandboxes, the same
/// at `https://login.salesforce.com` for those who log in there, of no tenant.
pub fn salesforce(client_id: impl Into<String>, secret: ClientSecret) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder(
        "https://{tenant}.my.salesforce.com/services/oauth2/token",
        client_id,
    )
    .revocation_endpoint("https://{tenant}.my.salesforce.com/services/oauth2/revoke")
    .client_authentication(ClientAuthentication::Post(secret))
    .response(|shape| {
        shape
            .error_kind("invalid_client_id", ProviderErrorKind::Misconfigured)
            // Both can be made active again.
            .error_kind("inactive_user", ProviderErrorKind::Rejected)
            .error_kind("inactive_org", ProviderErrorKind::Rejected)
            // Two refreshes at a time; the other one has the answer.
            .error_kind_if(
                "invalid_grant",
                "error_description",
                "already being processed",
                ProviderErrorKind::Transient,
            )
            // About where the gateway is, not about the token.
            .error_kind_if(
                "invalid_grant",
                "error_description",
                "ip restricted",
                ProviderErrorKind::Rejected,
            )
    })
}
