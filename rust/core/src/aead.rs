//! The two AEAD suites and one direction's record counter (protocol.md section 2, "Suites" and "Records").

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::consts::U12;
use aes_gcm::aes::Aes256Enc;
use aes_gcm::{AesGcm, KeyInit, Nonce, Tag};
use chacha20poly1305::ChaCha20Poly1305;
use zeroize::Zeroizing;

use crate::agreement::hkdf_sha256_expand;
use crate::error::{Error, Result};

/// Bytes a sealed text is longer than its plaintext.
pub const TAG_BYTES: usize = 16;
/// Bytes of a nonce in both suites.
pub const NONCE_BYTES: usize = 12;

const REKEY_INFO: &[u8] = b"keepstep/v1/rekey";

/// GCM only ever encrypts blocks: the key schedule for decrypting them is left out, 240 bytes in every key.
pub type Aes256Gcm = AesGcm<Aes256Enc, U12>;

/// A keyed cipher of one suite; the key schedule is erased when it goes.
pub enum Cipher {
    /// Suite 1.
    Aes256Gcm(Box<Aes256Gcm>),
    /// Suite 2 (RFC 8439).
    ChaCha20Poly1305(Box<ChaCha20Poly1305>),
}

impl Cipher {
    /// `suite` as in protocol.md section 2; suite 3 is reserved.
    pub fn new(suite: u64, key: &[u8; 32]) -> Result<Self> {
        match suite {
            1 => Ok(Self::Aes256Gcm(Box::new(Aes256Gcm::new(key.into())))),
            2 => Ok(Self::ChaCha20Poly1305(Box::new(ChaCha20Poly1305::new(key.into())))),
            _ => Err(Error::Unsupported("no such AEAD suite")),
        }
    }

    /// Ciphertext ‖ tag.
    pub fn seal(&self, nonce: &[u8; NONCE_BYTES], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>> {
        let mut output = Vec::with_capacity(plaintext.len() + TAG_BYTES);
        self.seal_into(nonce, aad, plaintext, &mut output)?;
        Ok(output)
    }

    /// Appends ciphertext ‖ tag; nothing where it fails.
    pub fn seal_into(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        plaintext: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<()> {
        let start = output.len();
        output.extend_from_slice(plaintext);
        let (nonce, text) = (Nonce::from(*nonce), &mut output[start..]);
        let sealed = match self {
            Self::Aes256Gcm(cipher) => cipher.encrypt_inout_detached(&nonce, aad, text.into()),
            Self::ChaCha20Poly1305(cipher) => cipher.encrypt_inout_detached(&nonce, aad, text.into()),
        };
        let Ok(tag) = sealed else {
            output.truncate(start);
            return Err(Error::Argument("the text is longer than the suite allows"));
        };
        output.extend_from_slice(&tag);
        Ok(())
    }

    /// The plaintext of ciphertext ‖ tag.
    pub fn open(&self, nonce: &[u8; NONCE_BYTES], aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let mut output = sealed.to_vec();
        self.open_in_place(nonce, aad, &mut output)?;
        Ok(output)
    }

    /// The same where the sealed bytes are; what is left there of bytes that do not open is of no use.
    pub fn open_in_place(&self, nonce: &[u8; NONCE_BYTES], aad: &[u8], sealed: &mut Vec<u8>) -> Result<()> {
        let (text, tag) = sealed.split_last_chunk_mut::<TAG_BYTES>().ok_or(Error::BadRecord)?;
        let (nonce, tag) = (Nonce::from(*nonce), Tag::from(*tag));
        match self {
            Self::Aes256Gcm(cipher) => cipher.decrypt_inout_detached(&nonce, aad, text.into(), &tag),
            Self::ChaCha20Poly1305(cipher) => cipher.decrypt_inout_detached(&nonce, aad, text.into(), &tag),
        }
        .map_err(|_| Error::BadRecord)?;
        sealed.truncate(sealed.len() - TAG_BYTES);
        Ok(())
    }
}

/// One direction's key and counter. The nonce is 32 zero bits ‖ the counter: it is never sent and never used twice.
pub struct RecordKey {
    suite: u64,
    secret: Zeroizing<[u8; 32]>,
    cipher: Cipher,
    aad: Vec<u8>,
    records: u64,
}

impl RecordKey {
    /// A direction at counter 0.
    pub fn new(suite: u64, secret: Zeroizing<[u8; 32]>, aad: Vec<u8>) -> Result<Self> {
        let cipher = Cipher::new(suite, &secret)?;
        Ok(Self { suite, secret, cipher, aad, records: 0 })
    }

    /// Records sealed or opened under the current secret: the next counter.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Seals the next record.
    pub fn seal(&mut self, plaintext: &[u8]) -> Result<Vec<u8>> {
        let mut record = Vec::with_capacity(plaintext.len() + TAG_BYTES);
        self.seal_into(plaintext, &mut record)?;
        Ok(record)
    }

    /// Appends the next record; nothing where it fails.
    pub fn seal_into(&mut self, plaintext: &[u8], output: &mut Vec<u8>) -> Result<()> {
        let next = self.next_counter()?;
        self.cipher.seal_into(&nonce(self.records), &self.aad, plaintext, output)?;
        self.records = next;
        Ok(())
    }

    /// Opens the next record; the counter moves only when it opens.
    pub fn open(&mut self, record: &[u8]) -> Result<Vec<u8>> {
        let next = self.next_counter()?;
        let plaintext = self.cipher.open(&nonce(self.records), &self.aad, record)?;
        self.records = next;
        Ok(plaintext)
    }

    /// Opens the next record where it is, as `open`.
    pub fn open_in_place(&mut self, record: &mut Vec<u8>) -> Result<()> {
        let next = self.next_counter()?;
        self.cipher.open_in_place(&nonce(self.records), &self.aad, record)?;
        self.records = next;
        Ok(())
    }

    /// Opens consecutive records: all of them, or none and the counter stays.
    pub fn open_many<T: AsRef<[u8]>>(&mut self, records: &[T]) -> Result<Vec<Vec<u8>>> {
        let before = self.records;
        let opened: Result<_> = records.iter().map(|record| self.open(record.as_ref())).collect();
        if opened.is_err() {
            self.records = before;
        }
        opened
    }

    /// `secret' = HKDF-Expand(secret, "keepstep/v1/rekey", 32)`, counter 0; the old secret is erased.
    pub fn rekey(&mut self) -> Result<()> {
        let expanded = hkdf_sha256_expand(self.secret.as_slice(), REKEY_INFO, 32)?;
        self.secret.copy_from_slice(&expanded);
        self.cipher = Cipher::new(self.suite, &self.secret)?;
        self.records = 0;
        Ok(())
    }

    fn next_counter(&self) -> Result<u64> {
        self.records.checked_add(1).ok_or(Error::Argument("the record counter is used up: rekey"))
    }
}

fn nonce(counter: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}
