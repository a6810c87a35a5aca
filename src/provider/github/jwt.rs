//! The JWT by which an App says who it is.
//!
//! One is good for many calls: signing costs a millisecond of a core.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use jsonwebtoken::Algorithm;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::Header;
use reqwest::header::HeaderValue;
use serde_json::json;
use zeroize::Zeroizing;

use super::super::signature::signed;
use crate::BoxError;
use crate::clock::Clock;
use crate::clock::unix_seconds;
use crate::sync::lock;

/// Signs the JWTs of one App, and keeps the last one.
pub(super) struct AppJwt {
    app_id: String,
    key: EncodingKey,
    clock: Arc<dyn Clock>,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    authorization: HeaderValue,
    signed_at: SystemTime,
}

impl AppJwt {
    pub(super) fn new(app_id: String, key: EncodingKey, clock: Arc<dyn Clock>) -> Self {
        Self {
            app_id,
            key,
            clock,
            kept: Mutex::new(None),
        }
    }

    pub(super) fn app_id(&self) -> &str {
        &self.app_id
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// The value of the `Authorization` header, marked as sensitive.
    pub(super) fn authorization(&self) -> Result<HeaderValue, BoxError> {
        let now = self.clock.now();
        // Held while it signs, or all that wait would sign one each.
        let mut kept = lock(&self.kept);
        if let Some(kept) = &*kept
            && kept.is_good(now)
        {
            return Ok(kept.authorization.clone());
        }
        let authorization = self.sign(now)?;
        *kept = Some(Kept {
            authorization: authorization.clone(),
            signed_at: now,
        });
        Ok(authorization)
    }

    /// GitHub refused this value: the next call signs anew. Another one, signed
    /// meanwhile, stays.
    pub(super) fn forget(&self, refused: &HeaderValue) {
        let mut kept = lock(&self.kept);
        if kept
            .as_ref()
            .is_some_and(|kept| kept.authorization == refused)
        {
            *kept = None;
        }
    }

    /// The claims that GitHub wants ("Generating a JSON Web Token (JWT) for a
    /// GitHub App"): issued a minute ago, against clocks that differ, and good
    /// for ten minutes at most.
    fn sign(&self, now: SystemTime) -> Result<HeaderValue, BoxError> {
        let seconds = unix_seconds(now);
        let claims = json!({
            "iat": seconds.saturating_sub(SKEW.as_secs()),
            "exp": seconds + LIFETIME.as_secs(),
            "iss": self.app_id,
        });
        let jwt = Zeroizing::new(signed(&Header::new(Algorithm::RS256), &claims, &self.key)?);
        bearer(&jwt)
    }
}

impl Kept {
    /// With time enough left to be used, and not from the future: the clock may
    /// have been set back since.
    fn is_good(&self, now: SystemTime) -> bool {
        now.duration_since(self.signed_at)
            .is_ok_and(|age| age + LEAST_LEFT <= LIFETIME)
    }
}

/// `Bearer` and a token, as a header value that is not logged.
pub(super) fn bearer(token: &str) -> Result<HeaderValue, BoxError> {
    let text = Zeroizing::new(format!("Bearer {token}"));
    let mut value = HeaderValue::from_str(&text)?;
    value.set_sensitive(true);
    Ok(value)
}

impl fmt::Debug for AppJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppJwt")
            .field("app_id", &self.app_id)
            .finish_non_exhaustive()
    }
}

const SKEW: Duration = Duration::from_secs(60);
const LIFETIME: Duration = Duration::from_secs(540);
const LEAST_LEFT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::KeyPair as _;
    use aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256;
    use aws_lc_rs::signature::RsaKeyPair;
    use aws_lc_rs::signature::UnparsedPublicKey;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::Value;

    use super::super::key::signing_key;
    use super::*;
    use crate::secret::PrivateKey;

    /// A clock that can be set back.
    #[derive(Debug)]
    struct Hand(Mutex<u64>);

    impl Hand {
        fn set(&self, seconds: u64) {
            *lock(&self.0) = seconds;
        }
    }

    impl Clock for Hand {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(*lock(&self.0))
        }
    }

    fn app() -> (AppJwt, Arc<Hand>, Vec<u8>) {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let key = PrivateKey::new(STANDARD.encode(pair.as_der().unwrap().as_ref()));
        let clock = Arc::new(Hand(Mutex::new(NOW)));
        let key = signing_key(&key).unwrap();
        let jwt = AppJwt::new("Iv1.app".to_owned(), key, Arc::<Hand>::clone(&clock));
        (jwt, clock, pair.public_key().as_ref().to_vec())
    }

    #[test]
    fn the_claims_are_those_that_github_wants_and_the_key_signed_them() {
        let (app, _clock, public) = app();

        let header = app.authorization().unwrap();

        assert!(header.is_sensitive());
        let jwt = header.to_str().unwrap().strip_prefix("Bearer ").unwrap();
        let (message, signature) = jwt.rsplit_once('.').unwrap();
        let parts = message.split('.').map(|part| {
            let json = URL_SAFE_NO_PAD.decode(part).unwrap();
            serde_json::from_slice::<Value>(&json).unwrap()
        });
        let parts: Vec<_> = parts.collect();
        assert_eq!(parts[0], json!({"typ": "JWT", "alg": "RS256"}));
        let claims = json!({"iat": NOW - 60, "exp": NOW + 540, "iss": "Iv1.app"});
        assert_eq!(parts[1], claims);
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &public)
            .verify(message.as_bytes(), &signature)
            .unwrap();
    }

    #[test]
    fn a_jwt_is_kept_until_a_minute_is_left_or_the_clock_goes_back() {
        let (app, clock, _public) = app();
        let mut last = app.authorization().unwrap();
        for (seconds, is_kept) in [
            (NOW + 1, true),
            (NOW + 480, true),
            (NOW + 481, false),
            (NOW + 482, true),
            (NOW + 480, false),
            (NOW - 900, false),
        ] {
            clock.set(seconds);
            let next = app.authorization().unwrap();
            assert_eq!(next == last, is_kept, "{seconds}");
            last = next;
        }
    }

    #[test]
    fn a_refused_jwt_is_forgotten_and_no_other() {
        let (app, clock, _public) = app();
        let first = app.authorization().unwrap();
        app.forget(&first);
        clock.set(NOW + 1);
        let second = app.authorization().unwrap();
        assert_ne!(second, first);

        app.forget(&first);
        clock.set(NOW + 2);

        assert_eq!(app.authorization().unwrap(), second);
    }

    #[test]
    fn debug_tells_no_key() {
        let (app, ..) = app();
        app.authorization().unwrap();
        assert_eq!(format!("{app:?}"), "AppJwt { app_id: \"Iv1.app\", .. }");
    }

    const NOW: u64 = 1_800_000_000;
}
