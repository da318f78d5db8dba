//! A pooler that speaks TLS, as every hosted one does.

use std::{fs, path::PathBuf};

use pooled_postgres::Db;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::{assert_echoes, bouncer::Bouncer, giving_up::past_its_deadline, named, warm_up};

/// An authority of a test's own, and a pooler with a certificate of it for one name.
struct Secured {
    bouncer: Bouncer,
    authority: PathBuf,
}

impl Secured {
    async fn start(host: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([host.to_owned()])
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let bouncer = Bouncer::start_with_tls(&certificate.pem(), &key.serialize_pem()).await;
        let path = std::env::temp_dir().join(format!(
            "iconoclash-ca-{}-{}.pem",
            std::process::id(),
            bouncer.port()
        ));
        fs::write(&path, authority.pem()).unwrap();
        Self {
            bouncer,
            authority: path,
        }
    }

    fn url(&self, options: &str) -> String {
        format!(
            "{}?{options}",
            self.bouncer.url().replace("127.0.0.1", "localhost")
        )
    }

    fn trusting(&self) -> String {
        self.url(&format!(
            "sslmode=require&sslrootcert={}",
            self.authority.display()
        ))
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.authority));
    }
}

#[tokio::test]
async fn statements_fly_and_are_cancelled_over_tls() {
    let secured = Secured::start("localhost").await;
    let db = named(&secured.trusting(), "over_tls", 4);
    warm_up(&db, 4).await;
    past_its_deadline(
        &named(&secured.trusting(), "deadline_tls", 1),
        "deadline_tls",
    )
    .await;
}

#[tokio::test]
async fn a_connection_that_may_be_somebody_elses_is_not_used() {
    let secured = Secured::start("localhost").await;
    let elsewhere = Secured::start("db.example.org").await;
    for (url, why) in [
        (
            secured.url("sslmode=require"),
            "an authority that nobody knows",
        ),
        (elsewhere.trusting(), "a certificate for another host"),
        (
            secured.url("sslmode=disable"),
            "no encryption where it is demanded",
        ),
    ] {
        let refused = Db::new(&url, 1)
            .unwrap()
            .old_one(&crate::ECHO, &[&1_i64])
            .await;
        assert!(refused.is_err(), "{why}");
    }
    assert_echoes(&Db::new(&secured.trusting(), 1).unwrap(), 2).await;
}
