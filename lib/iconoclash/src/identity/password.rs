//! Password hashing with argon2id, on blocking threads.
//!
//! - [`memory`]: the bounded memory of the hashes.

mod memory;

use std::fmt;

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::phc::{Output, ParamsString, PasswordHash, Salt},
};
use serde::Deserialize;
use tokio::task::spawn_blocking;
use unicode_normalization::UnicodeNormalization;

use crate::http::error::{Error, Result};
use memory::Memory;

/// Each hash takes 19 MiB and a core, so a burst of sign-ins queues instead of exhausting the function.
const MAX_CONCURRENT_HASHES: usize = 4;
static MEMORY: Memory = Memory::new(MAX_CONCURRENT_HASHES);

/// Verified if there is no account, so a sign-in takes the same time for an unknown address.
const DUMMY_HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$\
    bm8gYWNjb3VudCBoZXJlIQ$bm8gcGFzc3dvcmQgaGFzIHRoaXMgaGFzaCwgaXQgaXM";

/// A new password of 8 to 200 characters, whichever they are (NIST SP 800-63B), in the form that is hashed.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct NewPassword(String);

impl fmt::Debug for NewPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewPassword(…)")
    }
}

impl TryFrom<String> for NewPassword {
    type Error = &'static str;

    fn try_from(typed: String) -> Result<Self, Self::Error> {
        let normalized = normalized(&typed);
        match normalized.chars().count() {
            0..8 => Err("must be at least 8 characters"),
            8..=200 => Ok(Self(normalized)),
            _ => Err("must be at most 200 characters"),
        }
    }
}

/// How a password matches a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// In the form that is hashed.
    Normalized,
    /// Only as typed: the hash is older than that form and should be replaced.
    AsTyped,
}

/// Hashes a password with a fresh salt. Returns a PHC string.
pub(crate) async fn hash(password: NewPassword) -> Result<String> {
    hash_normalized(password.0).await
}

/// Hashes the password of an account that has it already, however short it is.
pub(crate) async fn hash_again(typed: &str) -> Result<String> {
    hash_normalized(normalized(typed)).await
}

/// Whether a typed password matches a stored PHC string. `None` takes the same time and never matches.
pub(crate) async fn verify(typed: String, stored: Option<String>) -> Result<Option<Match>> {
    with_blocks(&MEMORY, move |blocks| {
        let has_account = stored.is_some();
        let stored = stored.as_deref().unwrap_or(DUMMY_HASH);
        match_in(blocks, &typed, stored).filter(|_| has_account)
    })
    .await
}

/// The form that is hashed. Keyboards type one character differently: composed or decomposed, full or half width.
fn normalized(typed: &str) -> String {
    typed.nfkc().collect()
}

async fn hash_normalized(password: String) -> Result<String> {
    let hashed = with_blocks(&MEMORY, move |blocks| hash_in(blocks, &password)).await?;
    hashed.map_err(|error| Error::internal(error.to_string()))
}

fn match_in(blocks: &mut Vec<Block>, typed: &str, stored: &str) -> Option<Match> {
    let normalized = normalized(typed);
    if matches_in(blocks, &normalized, stored) {
        return Some(Match::Normalized);
    }
    (normalized != typed && matches_in(blocks, typed, stored)).then_some(Match::AsTyped)
}

/// Runs `work` on a blocking thread with memory for one hash. Waits, without blocking, until some is free.
async fn with_blocks<T: Send + 'static>(
    memory: &'static Memory,
    work: impl FnOnce(&mut Vec<Block>) -> T + Send + 'static,
) -> Result<T> {
    let mut lease = memory.lease().await;
    let done = spawn_blocking(move || work(lease.blocks()));
    done.await.map_err(Error::internal)
}

fn hash_in(blocks: &mut Vec<Block>, password: &str) -> argon2::password_hash::Result<String> {
    let salt = Salt::generate();
    let params = Params::default();

    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params)?,
        hash: Some(output(
            blocks,
            Argon2::from(params),
            password,
            &salt,
            Params::DEFAULT_OUTPUT_LEN,
        )?),
        salt: Some(salt),
    };
    Ok(hash.to_string())
}

/// Whether a password has the stored hash. The comparison of outputs takes constant time.
fn matches_in(blocks: &mut Vec<Block>, password: &str, stored: &str) -> bool {
    let outputs = computed_and_stored(blocks, password, stored);
    outputs.is_some_and(|(computed, stored)| computed == stored)
}

/// The output of a password with the parameters of a stored hash, and the stored output.
fn computed_and_stored(
    blocks: &mut Vec<Block>,
    password: &str,
    stored: &str,
) -> Option<(Output, Output)> {
    let hash = PasswordHash::new(stored).ok()?;
    let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
    let version = Version::try_from(hash.version?).ok()?;
    let argon2 = Argon2::new(algorithm, version, Params::try_from(&hash).ok()?);

    let stored = hash.hash?;
    let computed = output(blocks, argon2, password, &hash.salt?, stored.len()).ok()?;
    Some((computed, stored))
}

fn output(
    blocks: &mut Vec<Block>,
    argon2: Argon2<'_>,
    password: &str,
    salt: &[u8],
    length: usize,
) -> argon2::password_hash::Result<Output> {
    let needed = argon2.params().block_count();
    if blocks.len() < needed {
        blocks.resize_with(needed, Block::default);
    }

    let mut output = [0; Output::MAX_LENGTH];
    let output = output
        .get_mut(..length)
        .ok_or(argon2::password_hash::Error::OutputSize)?;
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, output, blocks)?;
    Ok(Output::new(output)?)
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    async fn hash_of(typed: &str) -> String {
        hash(NewPassword::try_from(typed.to_owned()).unwrap())
            .await
            .unwrap()
    }

    async fn found(typed: &str, stored: Option<&str>) -> Option<Match> {
        verify(typed.to_owned(), stored.map(str::to_owned))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_account_verifies() {
        let stored = hash_of("correct horse").await;
        let parameters = "$argon2id$v=19$m=19456,t=2,p=1$";
        assert!(stored.starts_with(parameters), "{stored}");

        assert_eq!(
            found("correct horse", Some(&stored)).await,
            Some(Match::Normalized)
        );
        assert_eq!(found("wrong horse", Some(&stored)).await, None);
        assert_eq!(found("correct horse", None).await, None);
        assert_eq!(found("x", Some("not a hash")).await, None);
    }

    #[tokio::test]
    async fn a_password_is_the_same_from_every_keyboard() {
        for (one, other) in [
            ("caf\u{e9} cr\u{e8}me", "cafe\u{301} cre\u{300}me"),
            ("\u{1e9b}\u{323} long enough", "\u{1e69} long enough"),
            (
                "\u{d55c}\u{ad6d}\u{c5b4} long",
                "\u{1112}\u{1161}\u{11ab}\u{ad6d}\u{c5b4} long",
            ),
            ("\u{ff43}orrect horse", "correct horse"),
            ("correct\u{a0}horse", "correct horse"),
            ("\u{fb01}ne weather", "fine weather"),
            ("\u{ff76}\u{ff9e} long enough", "\u{30ac} long enough"),
        ] {
            for (stored, typed) in [(one, other), (other, one)] {
                let hash = hash_of(stored).await;
                let found = found(typed, Some(&hash)).await;
                assert_eq!(found, Some(Match::Normalized), "{stored:?} {typed:?}");
            }

            // A hash of the time before passwords were normalised.
            let former = hash_in(&mut Vec::new(), one).unwrap();
            let expected = match normalized(one) == one {
                true => Match::Normalized,
                false => Match::AsTyped,
            };
            assert_eq!(found(one, Some(&former)).await, Some(expected), "{one:?}");
            assert_eq!(found("wrong horse", Some(&former)).await, None);
        }

        let composed = hash_of("caf\u{e9} cr\u{e8}me").await;
        assert_eq!(found("cafe creme", Some(&composed)).await, None);
        assert_eq!(found("CAF\u{c9} CR\u{c8}ME", Some(&composed)).await, None);
    }

    #[test]
    fn the_length_of_a_password_is_that_of_the_form_that_is_hashed() {
        let accepted = |typed: String| NewPassword::try_from(typed).is_ok();
        assert!(!accepted("e\u{301}".repeat(7)));
        assert!(accepted("e\u{301}".repeat(8)));
        assert!(accepted("e\u{301}".repeat(200)));
        assert!(!accepted("e\u{301}".repeat(201)));
    }

    #[test]
    fn an_unknown_address_costs_what_a_known_one_costs() {
        let dummy = PasswordHash::new(DUMMY_HASH).unwrap();
        let stored = PasswordHash::new(&hash_in(&mut Vec::new(), "x").unwrap()).unwrap();

        assert_eq!(dummy.algorithm, stored.algorithm);
        assert_eq!(dummy.version, stored.version);
        assert_eq!(dummy.params, stored.params);
        assert_eq!(dummy.salt.unwrap().len(), stored.salt.unwrap().len());
        assert_eq!(dummy.hash.unwrap().len(), stored.hash.unwrap().len());
    }

    #[test]
    fn a_hash_of_the_library_itself_verifies_in_used_memory() {
        use argon2::password_hash::PasswordHasher;

        let of_library = Argon2::default().hash_password(b"correct horse").unwrap();
        let mut blocks = Vec::new();
        hash_in(&mut blocks, "another").unwrap();

        assert!(matches_in(
            &mut blocks,
            "correct horse",
            &of_library.to_string()
        ));
        assert!(!matches_in(
            &mut blocks,
            "wrong horse",
            &of_library.to_string()
        ));
    }

    #[tokio::test]
    async fn a_burst_of_hashes_allocates_four_buffers_and_frees_them() {
        static MEMORY: Memory = Memory::new(4);
        let hashes = (0..200).map(|number| {
            with_blocks(&MEMORY, move |blocks| {
                blocks.resize_with(8, Block::default);
                std::thread::sleep(std::time::Duration::from_millis(1));
                number
            })
        });

        let done: Vec<i32> = join_all(hashes)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(done, (0..200).collect::<Vec<_>>());
        assert_eq!(MEMORY.allocated_ever(), 4);
        assert_eq!(MEMORY.kept(), 0);
    }

    #[tokio::test]
    async fn a_caller_who_leaves_or_panics_frees_the_place() {
        static MEMORY: Memory = Memory::new(1);
        let first = MEMORY.lease().await;
        {
            let left = MEMORY.lease();
            futures_util::pin_mut!(left);
            assert!(futures_util::poll!(left.as_mut()).is_pending());
        }
        drop(first);
        assert_eq!(MEMORY.kept(), 0, "none waits");

        let panicked = with_blocks(&MEMORY, |_| panic!("in a hash")).await;
        assert!(panicked.is_err());
        assert!(with_blocks(&MEMORY, |_| true).await.unwrap());
    }
}
