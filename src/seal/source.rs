//! Keys that lie elsewhere: with a key management service, say.

use std::fmt;

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use crate::BoxError;

/// Where the keys of a deployment are kept, if not in its settings.
///
/// With a key management service each key lies wrapped in the settings, and the
/// service unwraps it when the gateway starts:
///
/// ```
/// use futures_util::FutureExt as _;
/// use futures_util::future::BoxFuture;
/// use regrant::BoxError;
/// use regrant::seal::{KeySource, Keyring, SealingKey};
///
/// #[derive(Debug)]
/// struct Wrapped {
///     service: Service,
///     /// Ids and wrapped keys, the one that seals first.
///     keys: Vec<(String, Vec<u8>)>,
/// }
///
/// impl KeySource for Wrapped {
///     fn keys(&self) -> BoxFuture<'_, Result<Vec<SealingKey>, BoxError>> {
///         async {
///             let mut keys = Vec::new();
///             for (id, wrapped) in &self.keys {
///                 keys.push(SealingKey::new(id.as_str(), self.service.unwrap_key(wrapped).await?));
///             }
///             Ok(keys)
///         }
///         .boxed()
///     }
/// }
///
/// # #[derive(Debug)]
/// # struct Service;
/// # impl Service {
/// #     async fn unwrap_key(&self, wrapped: &[u8]) -> Result<[u8; 32], BoxError> {
/// #         Ok(wrapped.try_into()?)
/// #     }
/// # }
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let keys = vec![("2026b".to_owned(), vec![2; 32]), ("2026a".to_owned(), vec![1; 32])];
/// let keyring = Keyring::load(&Wrapped { service: Service, keys }).await?;
/// assert_eq!(keyring.key_ids().collect::<Vec<_>>(), ["2026b", "2026a"]);
/// # Ok::<_, BoxError>(()) }).unwrap();
/// ```
pub trait KeySource: fmt::Debug + Send + Sync + 'static {
    /// All keys that are in use; the first one seals. Asked once, before the
    /// gateway starts. Its errors are logged: they must not tell a key.
    fn keys(&self) -> BoxFuture<'_, Result<Vec<SealingKey>, BoxError>>;
}

/// A key under its id, on its way into a [`Keyring`](super::Keyring).
///
/// ```
/// let key = regrant::seal::SealingKey::new("2026b", [7; 32]);
/// assert_eq!(format!("{key:?}"), r#"SealingKey("2026b", [redacted])"#);
/// ```
#[derive(Clone)]
pub struct SealingKey {
    pub(super) id: Box<str>,
    pub(super) master: Zeroizing<[u8; 32]>,
}

impl SealingKey {
    /// 32 random bytes, under an id of 1 to 32 characters of `[A-Za-z0-9_-]`.
    /// Whether it is, [`Keyring::load`](super::Keyring::load) says.
    pub fn new(id: impl Into<Box<str>>, key: [u8; 32]) -> Self {
        Self {
            id: id.into(),
            master: Zeroizing::new(key),
        }
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({:?}, [redacted])", self.id)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use futures_util::FutureExt as _;
    use futures_util::future::ready;

    use super::*;
    use crate::seal::Keyring;
    use crate::seal::KeyringError;

    #[derive(Debug)]
    struct Given(Vec<SealingKey>);

    impl KeySource for Given {
        fn keys(&self) -> BoxFuture<'_, Result<Vec<SealingKey>, BoxError>> {
            ready(Ok(self.0.clone())).boxed()
        }
    }

    #[derive(Debug)]
    struct Away;

    impl KeySource for Away {
        fn keys(&self) -> BoxFuture<'_, Result<Vec<SealingKey>, BoxError>> {
            ready(Err("the service is away".into())).boxed()
        }
    }

    #[tokio::test]
    async fn a_source_of_bad_keys_or_of_none_is_named_without_telling_a_key() {
        let key = |id: &str| SealingKey::new(id, *b"canary canary canary canary cana");
        for (keys, want) in [
            (vec![], "there is no key"),
            (vec![key("one"), key("one")], "key `one` given twice"),
            (vec![key("one"), key("t w o")], "key 2 is not of the form"),
        ] {
            let error = Keyring::load(&Given(keys)).await.unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert!(!format!("{error:?} {error}").contains("canary"));
        }

        let source: &dyn KeySource = &Away;
        let error = Keyring::load(source).await.unwrap_err();
        assert!(matches!(error, KeyringError::Source(_)));
        assert_eq!(error.source().unwrap().to_string(), "the service is away");
    }

    #[tokio::test]
    async fn a_loaded_keyring_opens_what_a_parsed_one_sealed() {
        let parsed = Keyring::parse("one:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
        let loaded = Given(vec![SealingKey::new("one", [1; 32])]);
        let loaded = Keyring::load(&loaded).await.unwrap();

        assert!(!loaded.is_generated());
        assert_eq!(
            loaded.sealing().unwrap().check_value(),
            parsed.sealing().unwrap().check_value()
        );
    }
}
