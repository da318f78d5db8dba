//! Places kept for what the stack starts beside its services: each answers, and does no more.

pub(crate) mod upstash {
    use std::{io, net::SocketAddr};

    #[expect(dead_code, reason = "the real one reads them all")]
    pub(crate) struct FrontConfig {
        pub(crate) redis: SocketAddr,
        pub(crate) database: u32,
        pub(crate) token: String,
        pub(crate) listen: SocketAddr,
    }

    pub(crate) struct Front {
        url: String,
    }

    impl Front {
        #[expect(clippy::unused_async, reason = "the real one listens")]
        pub(crate) async fn start(config: FrontConfig) -> io::Result<Self> {
            Ok(Self {
                url: format!("http://{}", config.listen),
            })
        }

        pub(crate) fn url(&self) -> String {
            self.url.clone()
        }
    }
}

pub(crate) mod claude {
    use std::{io, net::SocketAddr, time::Duration};

    #[expect(dead_code, reason = "the real one reads them all")]
    pub(crate) struct Config {
        pub(crate) listen: SocketAddr,
        pub(crate) keys: Vec<String>,
        pub(crate) pace: Duration,
    }

    pub(crate) struct StandIn {
        url: String,
    }

    impl StandIn {
        #[expect(clippy::unused_async, reason = "the real one listens")]
        pub(crate) async fn start(config: Config) -> io::Result<Self> {
            Ok(Self {
                url: format!("http://{}", config.listen),
            })
        }

        pub(crate) fn url(&self) -> String {
            self.url.clone()
        }
    }
}

pub(crate) mod iconoclash_cli {
    use anyhow::Result;

    #[expect(clippy::unused_async, reason = "the real one asks the database")]
    pub(crate) async fn migrate(
        _direct: &str,
        _pooled: Option<&str>,
        _progress: impl FnMut(&str),
    ) -> Result<()> {
        Ok(())
    }
}
