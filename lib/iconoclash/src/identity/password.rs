//! Password hashing with argon2id, on blocking threads.
//!
//! - [`memory`]: the bounded memory of the hashes.

mod memory;

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::phc::{Output, ParamsString, PasswordHash, Salt},
};
use tokio::task::spawn_blocking;

use crate::http::error::{Error, Result};
use memory::Memory;

/// Each hash takes 19 MiB and a core, so a burst of sign-ins queues instead of exhausting the function.
const MAX_CONCURRENT_HASHES: usize = 4;
static MEMORY: Memory = Memory::new(MAX_CONCURRENT_HASHES);

/// Verified if there is no account, so a sign-in takes the same time for an unknown address.
const DUMMY_HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$\
    bm8gYWNjb3VudCBoZXJlIQ$bm8gcGFzc3dvcmQgaGFzIHRoaXMgaGFzaCwgaXQgaXM";

/// Hashes a password with a fresh salt. Returns a PHC string.
pub async fn hash(password: String) -> Result<String> {
    let hashed = with_blocks(&MEMORY, move |blocks| hash_in(blocks, &password)).await?;
    hashed.map_err(|error| Error::internal(error.to_string()))
}

/// Whether a password matches a stored PHC string. `None` takes the same time and never matches.
pub async fn verify(password: String, stored: Option<String>) -> Result<bool> {
    with_blocks(&MEMORY, move |blocks| {
        let has_account = stored.is_some();
        let stored = stored.as_deref().unwrap_or(DUMMY_HASH);
        matches_in(blocks, &password, stored) && has_account
    })
    .await
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

    #[tokio::test]
    async fn only_the_right_password_of_a_known_account_verifies() {
        let stored = hash("correct horse".to_owned()).await.unwrap();
        let parameters = "$argon2id$v=19$m=19456,t=2,p=1$";
        assert!(stored.starts_with(parameters), "{stored}");

        let verifies = async |password: &str, stored: Option<&str>| {
            let stored = stored.map(str::to_owned);
            verify(password.to_owned(), stored).await.unwrap()
        };
        assert!(verifies("correct horse", Some(&stored)).await);
        assert!(!verifies("wrong horse", Some(&stored)).await);
        assert!(!verifies("correct horse", None).await);
        assert!(!verifies("x", Some("not a hash")).await);
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
