//! The device's side of the handshake, without I/O (protocol.md section 2).

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use keepstep_core::aead::RecordKey;
use keepstep_core::agreement::{hkdf_sha256, x25519, x25519_public};
use keepstep_core::ed25519;
use keepstep_core::hash::{Hash, derive};
use keepstep_core::msgpack::{write_binary, write_integer};
use zeroize::Zeroizing;

use crate::identity::Device;
use crate::wire::{Cursor, from_device, from_server, write_array, write_map, write_text};

const VERSION: u64 = 1;

/// Secrets that one handshake uses once.
pub(crate) struct Fresh {
    pub(crate) ephemeral: [u8; 32],
    pub(crate) nonce: [u8; 32],
}

/// A handshake that waits for `ServerHello`.
pub(crate) struct Hello {
    fresh: Fresh,
    suite: u64,
    message: Vec<u8>,
}

/// A handshake that waits for `Ready`.
pub(crate) struct Auth {
    session: Session,
    /// What `Ready` is the answer to.
    pub(crate) message: Vec<u8>,
}

/// Both directions of a session.
pub(crate) struct Session {
    pub(crate) sealer: RecordKey,
    pub(crate) opener: RecordKey,
}

/// What the server says about itself: name and number of each limit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Limits(pub(crate) BTreeMap<String, u64>);

impl Limits {
    /// The number, or `default` where the server does not say.
    pub(crate) fn get(&self, name: &str, default: u64) -> u64 {
        self.0.get(name).copied().unwrap_or(default)
    }
}

impl Hello {
    /// Begins: `message` is sent as it is.
    pub(crate) fn new(fresh: Fresh, suite: u64) -> Result<Self> {
        let mut message = Vec::with_capacity(80);
        write_array(&mut message, 5);
        write_integer(&mut message, from_device::CLIENT_HELLO);
        write_array(&mut message, 1);
        write_integer(&mut message, VERSION);
        write_array(&mut message, 1);
        write_integer(&mut message, suite);
        write_binary(&mut message, &x25519_public(&fresh.ephemeral))?;
        write_binary(&mut message, &fresh.nonce)?;
        Ok(Self { fresh, suite, message })
    }

    /// `ClientHello`.
    pub(crate) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Checks `ServerHello` against the pinned key and answers it, sealed, as the device.
    pub(crate) fn receive(self, server_hello: &[u8], server_key: &[u8; 32], device: &Device) -> Result<Auth> {
        let mut cursor = Cursor::new(server_hello);
        ensure!(cursor.array()? == 3 && cursor.integer()? == from_server::SERVER_HELLO, "not a ServerHello");
        let core = cursor.binary()?;
        let server_signature: [u8; 64] = cursor.binary_of()?;
        let mut fields = Cursor::new(core);
        ensure!(fields.array()? == 7, "a ServerHello's core has 7 fields");
        ensure!(fields.integer()? == VERSION, "the server chose another version");
        ensure!(fields.integer()? == self.suite, "the server chose another suite");
        let ephemeral: [u8; 32] = fields.binary_of()?;
        let nonce: [u8; 32] = fields.binary_of()?;
        ensure!(nonce != [0; 32], "the server's nonce is all zero");
        ensure!(&fields.binary_of::<32>()? == server_key, "this server has another key than the one pinned");

        let th1 = derive("keepstep/v1/th1", &[&self.message, core].concat());
        let signed = [b"keepstep/v1/server-auth\0".as_slice(), &th1];
        ed25519::PublicKey::from_bytes(server_key)?.verify(&signed, &server_signature)?;
        let shared = x25519(&self.fresh.ephemeral, &ephemeral)?;
        let handshake_keys = hkdf_sha256(&th1, shared.as_slice(), b"keepstep/v1/hs", 64)?;

        let auth_core = auth_core(device)?;
        let th2 = derive("keepstep/v1/th2", &[&th1[..], &server_signature, &auth_core].concat());
        let signature = device.sign(&[b"keepstep/v1/device-auth\0".as_slice(), &th2].concat());
        let mut auth = Vec::with_capacity(256);
        write_array(&mut auth, 3);
        write_integer(&mut auth, from_device::CLIENT_AUTH);
        write_binary(&mut auth, &auth_core)?;
        write_binary(&mut auth, &signature)?;
        let message = record_key(self.suite, &handshake_keys[..32], &th1)?.seal(&auth)?;

        let th3 = derive("keepstep/v1/th3", &[&th2[..], &signature].concat());
        let keys = hkdf_sha256(&th3, shared.as_slice(), b"keepstep/v1/ap", 96)?;
        let session = Session {
            sealer: record_key(self.suite, &keys[..32], &th3)?,
            opener: record_key(self.suite, &keys[32..64], &th3)?,
        };
        Ok(Auth { session, message })
    }
}

impl Auth {
    /// Opens `Ready`: from here on the session is active.
    pub(crate) fn receive(mut self, ready: &[u8]) -> Result<(Session, Limits)> {
        let ready = self.session.opener.open(ready)?;
        let mut cursor = Cursor::new(&ready);
        ensure!(cursor.array()? >= 6 && cursor.integer()? == from_server::READY, "not a Ready");
        cursor.binary_of::<16>()?;
        cursor.integer()?;
        let limits = cursor.value()?.to_owned();
        let limits = limits.as_map().context("the limits are no map")?;
        let limit = |(name, value): &(rmpv::Value, rmpv::Value)| Some((name.as_str()?.to_owned(), value.as_u64()?));
        Ok((self.session, Limits(limits.iter().filter_map(limit).collect())))
    }
}

/// `[user_key, device_id, device_key, "none", {}]`.
fn auth_core(device: &Device) -> Result<Vec<u8>> {
    let mut core = Vec::with_capacity(128);
    write_array(&mut core, 5);
    write_binary(&mut core, &device.user_key)?;
    write_binary(&mut core, &device.id)?;
    write_binary(&mut core, &device.public())?;
    write_text(&mut core, "none")?;
    write_map(&mut core, 0);
    Ok(core)
}

fn record_key(suite: u64, secret: &[u8], aad: &Hash) -> Result<RecordKey> {
    let secret: [u8; 32] = secret.try_into()?;
    Ok(RecordKey::new(suite, Zeroizing::new(secret), aad.to_vec())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER_SECRET: [u8; 32] = [1; 32];
    const SERVER_EPHEMERAL: [u8; 32] = [2; 32];

    fn device() -> Device {
        Device::from_secret([5; 32], [6; 16], &[7; 32])
    }

    fn hello(suite: u64) -> Result<Hello> {
        Hello::new(Fresh { ephemeral: [3; 32], nonce: [4; 32] }, suite)
    }

    /// What a server answers: the core, and both as one message.
    fn server_hello(hello: &Hello, suite: u64, nonce: [u8; 32]) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut core = Vec::new();
        write_array(&mut core, 7);
        write_integer(&mut core, 1);
        write_integer(&mut core, suite);
        write_binary(&mut core, &x25519_public(&SERVER_EPHEMERAL))?;
        write_binary(&mut core, &nonce)?;
        write_binary(&mut core, &ed25519::public(&SERVER_SECRET))?;
        write_integer(&mut core, 1_760_000_000_000);
        write_integer(&mut core, 0);
        let th1 = derive("keepstep/v1/th1", &[hello.message(), &core].concat());
        let signature = ed25519::sign(&SERVER_SECRET, &[b"keepstep/v1/server-auth\0".as_slice(), &th1].concat());
        let mut message = Vec::new();
        write_array(&mut message, 3);
        write_integer(&mut message, from_server::SERVER_HELLO);
        write_binary(&mut message, &core)?;
        write_binary(&mut message, &signature)?;
        Ok((core, message))
    }

    #[test]
    fn both_sides_agree_on_keys_and_limits() -> Result<()> {
        for suite in [1, 2] {
            let hello = hello(suite)?;
            let client_hello = hello.message().to_vec();
            let (core, message) = server_hello(&hello, suite, [8; 32])?;
            let auth = hello.receive(&message, &ed25519::public(&SERVER_SECRET), &device())?;

            let th1 = derive("keepstep/v1/th1", &[&client_hello[..], &core].concat());
            let shared = x25519(&SERVER_EPHEMERAL, &x25519_public(&[3; 32]))?;
            let keys = hkdf_sha256(&th1, shared.as_slice(), b"keepstep/v1/hs", 64)?;
            let opened = record_key(suite, &keys[..32], &th1)?.open(&auth.message)?;
            let mut cursor = Cursor::new(&opened);
            assert_eq!((cursor.array()?, cursor.integer()?), (3, from_device::CLIENT_AUTH));
            let auth_core = cursor.binary()?;
            let signature: [u8; 64] = cursor.binary_of()?;
            let server_signature = &message[message.len() - 64..];
            let th2 = derive("keepstep/v1/th2", &[&th1[..], server_signature, auth_core].concat());
            let signed = [b"keepstep/v1/device-auth\0".as_slice(), &th2];
            ed25519::PublicKey::from_bytes(&device().public())?.verify(&signed, &signature)?;

            let th3 = derive("keepstep/v1/th3", &[&th2[..], &signature].concat());
            let keys = hkdf_sha256(&th3, shared.as_slice(), b"keepstep/v1/ap", 96)?;
            let mut ready = vec![0x96, 4];
            write_binary(&mut ready, &[9; 16])?;
            write_integer(&mut ready, 1);
            write_map(&mut ready, 1);
            write_text(&mut ready, "unacked_bytes")?;
            write_integer(&mut ready, 4096);
            ready.extend_from_slice(&[0x90, 0x90]);
            let mut from_server = record_key(suite, &keys[32..64], &th3)?;
            let (mut session, limits) = auth.receive(&from_server.seal(&ready)?)?;
            assert_eq!((limits.get("unacked_bytes", 1), limits.get("other", 1)), (4096, 1));
            assert_eq!(session.opener.open(&from_server.seal(b"page")?)?, b"page");
            let record = session.sealer.seal(b"publish")?;
            assert_eq!(record_key(suite, &keys[..32], &th3)?.open(&record)?, b"publish");
        }
        Ok(())
    }

    #[test]
    fn what_is_not_the_pinned_servers_answer_is_refused() -> Result<()> {
        let key = ed25519::public(&SERVER_SECRET);
        let (_, message) = server_hello(&hello(1)?, 1, [8; 32])?;
        for position in 0..message.len() {
            let mut changed = message.clone();
            changed[position] ^= 1;
            assert!(hello(1)?.receive(&changed, &key, &device()).is_err(), "byte {position}");
        }
        assert!(hello(1)?.receive(&message, &[7; 32], &device()).is_err());
        assert!(hello(2)?.receive(&message, &key, &device()).is_err());
        let (_, zero_nonce) = server_hello(&hello(1)?, 1, [0; 32])?;
        assert!(hello(1)?.receive(&zero_nonce, &key, &device()).is_err());
        Ok(())
    }

    #[test]
    fn a_ready_that_does_not_open_is_refused() -> Result<()> {
        let hello = hello(1)?;
        let (_, message) = server_hello(&hello, 1, [8; 32])?;
        let auth = hello.receive(&message, &ed25519::public(&SERVER_SECRET), &device())?;
        assert!(auth.receive(&[0; 64]).is_err());
        Ok(())
    }

    fn bytes<const N: usize>(vector: &serde_json::Value, field: &str) -> Result<[u8; N]> {
        Ok(long_bytes(vector, field)?.as_slice().try_into()?)
    }

    fn long_bytes(vector: &serde_json::Value, field: &str) -> Result<Vec<u8>> {
        let text = vector[field].as_str().context("a field of the vector is missing")?;
        let digits = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
        Ok(digits.collect::<Result<_, _>>()?)
    }

    #[test]
    fn the_protocols_vectors_come_out_byte_for_byte() -> Result<()> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/handshake.json");
        let vectors: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path)?)?;
        let mut checked = 0;
        for vector in &vectors {
            let suite = vector["suite"].as_u64().context("no suite")?;
            // What a load generator says: one suite, nothing to resume, no options.
            if vector["resume"] != "none" || vector["suites_offered"] != serde_json::json!([suite]) {
                continue;
            }
            let fresh =
                Fresh { ephemeral: bytes(vector, "device_ephemeral_secret")?, nonce: bytes(vector, "device_nonce")? };
            let secret = bytes(vector, "device_secret")?;
            let device = Device::from_secret(bytes(vector, "user_key")?, bytes(vector, "device_id")?, &secret);
            let hello = Hello::new(fresh, suite)?;
            assert_eq!(hello.message(), long_bytes(vector, "client_hello")?);
            let auth = hello.receive(&long_bytes(vector, "server_hello")?, &bytes(vector, "server_key")?, &device)?;
            assert_eq!(auth.message, long_bytes(vector, "client_auth")?);
            let (mut session, _) = auth.receive(&long_bytes(vector, "ready")?)?;
            let record = session.sealer.seal(&long_bytes(vector, "first_message_of_device")?)?;
            assert_eq!(record, long_bytes(vector, "first_record_of_device")?);
            let message = session.opener.open(&long_bytes(vector, "first_record_of_server")?)?;
            assert_eq!(message, long_bytes(vector, "first_message_of_server")?);
            checked += 1;
        }
        assert!(checked > 0);
        Ok(())
    }
}
