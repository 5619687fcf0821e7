//! Users and devices that exist for one run: their keys, account events and signed events (protocol.md sections 1 and 3).

use anyhow::Result;
use ed25519_dalek::{Signer as _, SigningKey};
use keepstep_core::agreement::x25519_public;
use keepstep_core::hash::{Hash, blake3, chain_0, derive, event_hash};
use keepstep_core::header::DEVICES_STREAM;
use keepstep_core::msgpack::{write_binary, write_integer};

use crate::wire::{write_array, write_nil, write_position, write_text};

/// The capabilities of a device entry.
pub(crate) mod capability {
    pub(crate) const PUBLISH: u64 = 1;
    pub(crate) const SUBSCRIBE: u64 = 2;
    pub(crate) const MANAGE: u64 = 4;
}

const KIND_APPLICATION: u64 = 0;
const KIND_ACCOUNT: u64 = 5;
const GENESIS: u64 = 0;
const ENROL: u64 = 1;

/// A device of a user, with its secret key.
pub(crate) struct Device {
    pub(crate) user_key: [u8; 32],
    pub(crate) id: [u8; 16],
    key: SigningKey,
    box_key: [u8; 32],
}

/// A user's root keys; they sign the genesis and are not needed again.
pub(crate) struct Root {
    key: SigningKey,
    next: SigningKey,
}

/// An event as it is published.
pub(crate) struct Signed {
    pub(crate) header: Vec<u8>,
    pub(crate) signature: [u8; 64],
    pub(crate) hash: Hash,
}

/// A position in a stream, as an author names what it has seen.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) seq: u64,
    pub(crate) chain: Hash,
}

/// What an author says about one event.
pub(crate) struct Draft<'a> {
    pub(crate) stream: &'a str,
    pub(crate) n: u64,
    /// Hash of the author's event before it in this stream; zeros for the first.
    pub(crate) previous: &'a Hash,
    pub(crate) seen: Seen,
    pub(crate) devices_seen: Seen,
    pub(crate) time_ms: u64,
    pub(crate) payload: &'a [u8],
}

/// `N` bytes nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

impl Root {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { key: SigningKey::from_bytes(&random()?), next: SigningKey::from_bytes(&random()?) })
    }

    /// The user id.
    pub(crate) fn user_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// The payload of the first event of `$devices`: `[0, user_key, next_root_hash, device_entry, root_sig]`.
    pub(crate) fn genesis(&self, device: &Device, capabilities: u64, time_ms: u64) -> Result<Vec<u8>> {
        let user_key = self.user_key();
        let next_root_hash = derive("keepstep/v1/next-root", &self.next.verifying_key().to_bytes());
        let mut fields = Vec::new();
        write_integer(&mut fields, GENESIS);
        write_binary(&mut fields, &user_key)?;
        write_binary(&mut fields, &next_root_hash)?;
        device.write_entry(&mut fields, capabilities, time_ms)?;

        let mut unsigned = Vec::new();
        write_array(&mut unsigned, 4);
        unsigned.extend_from_slice(&fields);
        let chain = chain_0(&user_key, DEVICES_STREAM);
        let signed = [b"keepstep/v1/root\0".as_slice(), &user_key, &chain, &blake3(&unsigned)].concat();

        let mut payload = Vec::new();
        write_array(&mut payload, 5);
        payload.extend_from_slice(&fields);
        write_binary(&mut payload, &self.key.sign(&signed).to_bytes())?;
        Ok(payload)
    }
}

impl Device {
    pub(crate) fn new(user_key: [u8; 32]) -> Result<Self> {
        let mut id: [u8; 16] = random()?;
        set_uuid_version(&mut id, 4);
        let key = SigningKey::from_bytes(&random()?);
        Ok(Self { user_key, id, key, box_key: x25519_public(&random()?) })
    }

    #[cfg(test)]
    pub(crate) fn from_secret(user_key: [u8; 32], id: [u8; 16], secret: &[u8; 32]) -> Self {
        Self { user_key, id, key: SigningKey::from_bytes(secret), box_key: [9; 32] }
    }

    pub(crate) fn public(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// `[1, device_entry]`: the payload of the event that makes this device live.
    pub(crate) fn enrolment(&self, capabilities: u64, time_ms: u64) -> Result<Vec<u8>> {
        let mut payload = Vec::new();
        write_array(&mut payload, 2);
        write_integer(&mut payload, ENROL);
        self.write_entry(&mut payload, capabilities, time_ms)?;
        Ok(payload)
    }

    fn write_entry(&self, output: &mut Vec<u8>, capabilities: u64, time_ms: u64) -> Result<()> {
        write_array(output, 7);
        write_binary(output, &self.id)?;
        write_binary(output, &self.public())?;
        write_binary(output, &self.box_key)?;
        write_integer(output, capabilities);
        write_integer(output, time_ms);
        write_nil(output);
        write_binary(output, b"")?;
        Ok(())
    }

    /// Signs an event.
    pub(crate) fn event(&self, draft: &Draft<'_>) -> Result<Signed> {
        let kind = if draft.stream == DEVICES_STREAM { KIND_ACCOUNT } else { KIND_APPLICATION };
        let mut header = Vec::with_capacity(256);
        write_array(&mut header, 14);
        write_integer(&mut header, 1);
        write_integer(&mut header, kind);
        write_binary(&mut header, &event_id(draft.time_ms)?)?;
        write_text(&mut header, draft.stream)?;
        write_integer(&mut header, draft.n);
        write_binary(&mut header, &draft.previous[..16])?;
        write_nil(&mut header);
        write_position(&mut header, draft.seen.seq, &draft.seen.chain)?;
        write_position(&mut header, draft.devices_seen.seq, &draft.devices_seen.chain)?;
        write_nil(&mut header);
        write_integer(&mut header, draft.time_ms << 16);
        write_nil(&mut header);
        write_integer(&mut header, draft.payload.len() as u64);
        write_binary(&mut header, &blake3(draft.payload))?;
        let signature = self.sign(&[b"keepstep/v1/event\0".as_slice(), &self.user_key, &self.id, &header].concat());
        let hash = event_hash(&header, &signature);
        Ok(Signed { header, signature, hash })
    }
}

/// A UUID of version 7 (RFC 9562 section 5.7).
fn event_id(time_ms: u64) -> Result<[u8; 16]> {
    let mut id: [u8; 16] = random()?;
    id[..6].copy_from_slice(&time_ms.to_be_bytes()[2..]);
    set_uuid_version(&mut id, 7);
    Ok(id)
}

fn set_uuid_version(id: &mut [u8; 16], version: u8) {
    id[6] = (id[6] & 0x0f) | (version << 4);
    id[8] = (id[8] & 0x3f) | 0x80;
}

#[cfg(test)]
mod tests {
    use keepstep_core::ed25519::PublicKey;
    use keepstep_core::header::{Header, Kind};

    use super::*;
    use crate::wire::Cursor;

    const TIME_MS: u64 = 1_760_000_000_000;

    fn seen() -> Seen {
        Seen { seq: 3, chain: [7; 32] }
    }

    #[test]
    fn an_event_decodes_strictly_and_verifies() -> Result<()> {
        let device = Device::new([5; 32])?;
        let draft = Draft {
            stream: "load",
            n: 300,
            previous: &[8; 32],
            seen: seen(),
            devices_seen: seen(),
            time_ms: TIME_MS,
            payload: b"payload",
        };
        let event = device.event(&draft)?;
        let header = Header::decode(&event.header)?;
        assert_eq!((header.kind, header.stream, header.n), (Kind::Application, "load", 300));
        assert_eq!((header.prev, header.seen, header.devices_seen), ([8; 16], (3, [7; 32]), (3, [7; 32])));
        assert_eq!((header.payload_len, header.payload_hash), (7, blake3(b"payload")));
        assert_eq!((header.id_time_ms(), header.hlc >> 16), (TIME_MS, TIME_MS));
        let signed = [b"keepstep/v1/event\0".as_slice(), &[5; 32], &device.id, &event.header];
        PublicKey::from_bytes(&device.public())?.verify(&signed, &event.signature)?;
        assert_eq!(event.hash, event_hash(&event.header, &event.signature));
        Ok(())
    }

    #[test]
    fn the_genesis_is_signed_by_the_root_key() -> Result<()> {
        let root = Root::new()?;
        let device = Device::new(root.user_key())?;
        let payload = root.genesis(&device, capability::PUBLISH | capability::MANAGE, TIME_MS)?;
        let mut cursor = Cursor::new(&payload);
        assert_eq!((cursor.array()?, cursor.integer()?), (5, GENESIS));
        assert_eq!(cursor.binary_of::<32>()?, root.user_key());
        cursor.binary_of::<32>()?;
        assert_eq!(cursor.array()?, 7);
        assert_eq!(cursor.binary_of::<16>()?, device.id);
        assert_eq!(cursor.binary_of::<32>()?, device.public());
        cursor.binary_of::<32>()?;
        assert_eq!((cursor.integer()?, cursor.integer()?, cursor.nil()), (5, TIME_MS, true));
        assert_eq!(cursor.binary()?, b"");
        let body = &payload[1..payload.len() - cursor.rest().len()];
        let unsigned = blake3(&[&[0x94], body].concat());
        let chain = chain_0(&root.user_key(), "$devices");
        let signed = [b"keepstep/v1/root\0".as_slice(), &root.user_key(), &chain, &unsigned];
        PublicKey::from_bytes(&root.user_key())?.verify(&signed, &cursor.binary_of::<64>()?)?;
        Ok(())
    }

    #[test]
    fn an_enrolment_lists_the_device() -> Result<()> {
        let device = Device::new([5; 32])?;
        let payload = device.enrolment(capability::PUBLISH | capability::SUBSCRIBE, TIME_MS)?;
        let mut cursor = Cursor::new(&payload);
        assert_eq!((cursor.array()?, cursor.integer()?, cursor.array()?), (2, ENROL, 7));
        assert_eq!(cursor.binary_of::<16>()?, device.id);
        assert_eq!(device.id[6] >> 4, 4);
        Ok(())
    }
}
