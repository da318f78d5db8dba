//! As much of the Postgres protocol as tells where a connection's start-up ends.

/// Codes that stand where a start-up message has its version.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// The message with which a client says goodbye; nobody waits for it.
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

pub(super) fn is_goodbye(burst: &[u8]) -> bool {
    burst == TERMINATE
}

/// Follows one connection until the server is first ready for a query.
#[derive(Default)]
pub(super) struct StartUp {
    ready: bool,
    /// Whether the server answers with a bare byte next, as it does to a request for encryption.
    bare_answer: bool,
    buffer: Vec<u8>,
    skip: usize,
}

/// The server agreed to encrypt, so nothing after can be read.
#[derive(Debug, PartialEq)]
pub(super) struct Encrypted;

impl StartUp {
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn client_said(&mut self, burst: &[u8]) {
        let code = burst
            .get(4..8)
            .and_then(|code| code.try_into().ok())
            .map(u32::from_be_bytes);
        if !self.ready && burst.len() == 8 && matches!(code, Some(SSL_REQUEST | GSS_REQUEST)) {
            self.bare_answer = true;
        }
    }

    pub(super) fn server_said(&mut self, mut bytes: &[u8]) -> Result<(), Encrypted> {
        if self.ready || bytes.is_empty() {
            return Ok(());
        }
        if self.bare_answer {
            self.bare_answer = false;
            if matches!(bytes[0], b'S' | b'G') {
                return Err(Encrypted);
            }
            bytes = &bytes[1..];
        }
        // Messages are a type, a length that counts itself, and content that is of no interest here.
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (5 - self.buffer.len()).min(bytes.len());
            self.buffer.extend_from_slice(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            if let [kind, length @ ..] = self.buffer.as_slice()
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                if *kind == b'Z' {
                    self.ready = true;
                    return Ok(());
                }
                self.skip = (u32::from_be_bytes(length) as usize).saturating_sub(4);
                self.buffer.clear();
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
    fn the_first_ready_for_query_ends_the_start_up_however_it_is_divided() {
        // A parameter whose value looks like the message we wait for.
        let parameter = [&[b'S', 0, 0, 0, 10][..], READY].concat();
        let answer = [AUTH_OK, &parameter, READY].concat();
        for size in 1..=answer.len() {
            let mut start_up = StartUp::default();
            let mut seen = 0;
            for chunk in answer.chunks(size) {
                start_up.server_said(chunk).unwrap();
                seen += chunk.len();
                // The message is known by its header; its last byte says only that no transaction is open.
                assert_eq!(start_up.is_ready(), seen + 1 >= answer.len(), "{size}");
            }
        }
    }

    #[test]
    fn a_request_for_encryption_is_answered_by_a_bare_byte() {
        let request = [&8_u32.to_be_bytes()[..], &SSL_REQUEST.to_be_bytes()].concat();
        let mut refused = StartUp::default();
        refused.client_said(&request);
        refused.server_said(b"N").unwrap();
        refused.server_said(READY).unwrap();
        assert!(refused.is_ready());

        let mut agreed = StartUp::default();
        agreed.client_said(&request);
        assert_eq!(agreed.server_said(b"S"), Err(Encrypted));
    }
}
