//! Interim.
use crate::BoxError;
use crate::error::ConfigError;
use futures_util::StreamExt as _;
use futures_util::stream;
use futures_util::stream::BoxStream;
use std::str::FromStr as _;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

#[derive(Clone, Debug)]
pub(super) struct Hosts(Config);

impl Hosts {
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        Config::from_str(url).map(Self).map_err(|error| {
            ConfigError::new("the connection string", "cannot be read").caused_by(error)
        })
    }
    pub(super) async fn connect_raw(
        &self,
    ) -> Result<
        (
            Client,
            BoxStream<'static, Result<AsyncMessage, tokio_postgres::Error>>,
        ),
        BoxError,
    > {
        let (client, mut connection) = self.0.connect(NoTls).await?;
        Ok((
            client,
            stream::poll_fn(move |cx| connection.poll_message(cx)).boxed(),
        ))
    }
}
