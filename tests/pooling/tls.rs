//! A pooler that requires TLS, as hosted ones do.

use std::{fs, path::PathBuf};

use iconoclash_fakes::pooler::Pooler;
use pooled_postgres::Db;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::{Echo, assert_echoes, cancelling::assert_cancelled_at_its_deadline, warm_up};

/// A pooler with a certificate for one host, signed by an authority that no other test trusts.
struct TlsPooler {
    pooler: Pooler,
    authority: PathBuf,
}

impl TlsPooler {
    async fn start(host: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();

        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([host.to_owned()])
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let pooler = Pooler::start_with_tls(&certificate.pem(), &key.serialize_pem()).await;

        let process = std::process::id();
        let file = format!("iconoclash-ca-{process}-{}.pem", pooler.port());
        let path = std::env::temp_dir().join(file);
        fs::write(&path, authority.pem()).unwrap();
        Self {
            pooler,
            authority: path,
        }
    }

    fn url(&self, options: &str) -> String {
        let url = self.pooler.url().replace("127.0.0.1", "localhost");
        format!("{url}?{options}")
    }

    /// The URL with which a client trusts the authority.
    fn trusted_url(&self) -> String {
        let authority = self.authority.display();
        self.url(&format!("sslmode=require&sslrootcert={authority}"))
    }
}

impl Drop for TlsPooler {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.authority));
    }
}

#[tokio::test]
async fn statements_run_and_are_cancelled_over_tls() {
    let pooler = TlsPooler::start("localhost").await;
    let db = Db::named("over_tls", &pooler.trusted_url(), 4).unwrap();
    warm_up(&db, 4).await;

    let application = "deadline_tls";
    let db = Db::named(application, &pooler.trusted_url(), 1).unwrap();
    assert_cancelled_at_its_deadline(&db, application).await;
}

#[tokio::test]
async fn a_connection_to_an_unverified_server_is_refused() {
    let pooler = TlsPooler::start("localhost").await;
    let other_host = TlsPooler::start("db.example.org").await;
    for (url, why) in [
        (pooler.url("sslmode=require"), "an unknown authority"),
        (other_host.trusted_url(), "a certificate for another host"),
        (
            pooler.url("sslmode=disable"),
            "no encryption where the server requires it",
        ),
    ] {
        let db = Db::new(&url, 1).unwrap();
        let outcome = db.one(Echo { number: 1 }).await;
        assert!(outcome.is_err(), "accepted: {why}");
    }

    let db = Db::new(&pooler.trusted_url(), 1).unwrap();
    assert_echoes(&db, 2).await;
}
