//! The part of the Postgres protocol that finds the end of a connection's start-up.

/// Codes in place of the version in a start-up message.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// The client's last message, which has no answer.
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];
/// The type and the length of a message.
const HEADER_BYTES: usize = 5;

pub(super) fn is_terminate(burst: &[u8]) -> bool {
    burst == TERMINATE
}

/// Parses one connection until the server is first ready for a query.
#[derive(Default)]
pub(super) struct StartUp {
    ready: bool,
    /// Whether a single byte comes next, the answer to a request for encryption.
    single_byte_next: bool,
    /// The header of the current message as far as it was received.
    header: Vec<u8>,
    /// Bytes left of the current message's content.
    skip: usize,
}

/// The server agreed to encrypt, so the rest is unreadable.
#[derive(Debug, PartialEq)]
pub(super) struct Encrypted;

impl StartUp {
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn client_sent(&mut self, burst: &[u8]) {
        let code = burst
            .get(4..8)
            .and_then(|code| code.try_into().ok())
            .map(u32::from_be_bytes);

        if !self.ready && burst.len() == 8 && matches!(code, Some(SSL_REQUEST | GSS_REQUEST)) {
            self.single_byte_next = true;
        }
    }

    pub(super) fn server_sent(&mut self, mut bytes: &[u8]) -> Result<(), Encrypted> {
        if self.ready || bytes.is_empty() {
            return Ok(());
        }
        if self.single_byte_next {
            self.single_byte_next = false;
            if matches!(bytes[0], b'S' | b'G') {
                return Err(Encrypted);
            }
            bytes = &bytes[1..];
        }

        // A message is a type, a length that includes itself, and content.
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];

            let missing = (HEADER_BYTES - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];

            if let [kind, length @ ..] = self.header.as_slice()
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                if *kind == b'Z' {
                    self.ready = true;
                    return Ok(());
                }
                self.skip = (u32::from_be_bytes(length) as usize).saturating_sub(4);
                self.header.clear();
            }
        }

        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTH_OK: &[u8] = &[b'R', 0, 0, 0, 8, 0, 0, 0, 0];
    const READY: &[u8] = &[b'Z', 0, 0, 0, 5, b'I'];

    #[test]
    fn the_first_ready_for_query_ends_the_start_up_in_any_division_into_packets() {
        // A parameter whose value is the same as the expected message.
        let parameter = [&[b'S', 0, 0, 0, 10][..], READY].concat();
        let answer = [AUTH_OK, &parameter, READY].concat();

        for size in 1..=answer.len() {
            let mut start_up = StartUp::default();
            let mut seen = 0;
            for chunk in answer.chunks(size) {
                start_up.server_sent(chunk).unwrap();
                seen += chunk.len();
                // The header identifies the message; its last byte is the transaction's state.
                assert_eq!(start_up.is_ready(), seen + 1 >= answer.len(), "{size}");
            }
        }
    }

    #[test]
    fn a_request_for_encryption_is_answered_by_a_single_byte() {
        let request = [&8_u32.to_be_bytes()[..], &SSL_REQUEST.to_be_bytes()].concat();
        let mut refused = StartUp::default();
        refused.client_sent(&request);
        refused.server_sent(b"N").unwrap();
        refused.server_sent(READY).unwrap();
        assert!(refused.is_ready());

        let mut agreed = StartUp::default();
        agreed.client_sent(&request);
        assert_eq!(agreed.server_sent(b"S"), Err(Encrypted));
    }
}
