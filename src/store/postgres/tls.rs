//! TLS to the database: chain and host name are checked, or there is none.

#[cfg(feature = "rustls")]
pub(super) use self::with_rustls::Connector;
#[cfg(feature = "rustls")]
pub(super) use self::with_rustls::connector;
#[cfg(not(feature = "rustls"))]
pub(super) use self::without::Connector;
#[cfg(not(feature = "rustls"))]
pub(super) use self::without::connector;

#[cfg(feature = "rustls")]
mod with_rustls {
    use std::sync::Arc;

    use rustls::ClientConfig;
    use rustls::RootCertStore;
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem;
    use rustls::pki_types::pem::PemObject as _;
    use rustls_platform_verifier::BuilderVerifierExt as _;
    use tokio_postgres_rustls::MakeRustlsConnect;

    use super::super::connection_string::TlsSettings;
    use super::super::connection_string::refuse;
    use crate::BoxError;
    use crate::error::ConfigError;

    pub(in super::super) type Connector = MakeRustlsConnect;

    pub(in super::super) fn connector(settings: &TlsSettings) -> Result<Connector, ConfigError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let unusable =
            |error: rustls::Error| refuse("asks for TLS, which cannot be set up").caused_by(error);
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let config = match &settings.roots {
            Some(file) => {
                let roots = roots(file).map_err(|error| {
                    refuse("names an sslrootcert that cannot be used: a PEM file of CAs is needed")
                        .caused_by(error)
                })?;
                config.with_root_certificates(roots)
            }
            None => config.with_platform_verifier().map_err(|error| {
                refuse("needs the CAs of this machine: install them, or write sslrootcert=FILE")
                    .caused_by(error)
            })?,
        };
        let mut config = match &settings.identity {
            Some((certificate, key)) => {
                let cannot = |error: BoxError| {
                    refuse("names an sslcert and sslkey that cannot be used: PEM is needed")
                        .caused_by(error)
                };
                let chain = certificates(certificate).map_err(|error| cannot(error.into()))?;
                let key =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| cannot(error.into()))?;
                config
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| cannot(error.into()))?
            }
            None => config.with_no_client_auth(),
        };
        // What `sslnegotiation=direct` demands.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(MakeRustlsConnect::new(config))
    }

    fn roots(file: &str) -> Result<RootCertStore, BoxError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file)? {
            roots.add(certificate)?;
        }
        if roots.is_empty() {
            return Err(pem::Error::NoItemsFound.into());
        }
        Ok(roots)
    }

    fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
        CertificateDer::pem_file_iter(file)?.collect()
    }
}

#[cfg(not(feature = "rustls"))]
mod without {
    use tokio_postgres::NoTls;

    use super::super::connection_string::TlsSettings;
    use super::super::connection_string::refuse;
    use crate::error::ConfigError;

    pub(in super::super) type Connector = NoTls;

    pub(in super::super) fn connector(_settings: &TlsSettings) -> Result<Connector, ConfigError> {
        Err(refuse(
            "needs TLS: enable the feature `rustls` of regrant, or write sslmode=disable on a \
             network that you trust",
        ))
    }
}
