//! A Nostr relay: NIP-01 over WebSocket. Events are signed before the clock starts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use secp256k1::{Keypair, Secp256k1, SecretKey};
use sha2::{Digest, Sha256};

use crate::arguments::{Arguments, GROUP, Target};
use crate::connection::{Came, Connection, Subscription};
use crate::event::Payloads;
use crate::websocket::WebSocket;

const SUBSCRIPTION: &str = "s";
/// A short text note.
const KIND: u64 = 1;
const ID_DIGITS: usize = 64;

/// What all connections of a run have in common.
pub(crate) struct Fleet {
    payloads: Arc<Payloads>,
    payload_bytes: usize,
    created_at_s: u64,
    authors: Vec<Author>,
}

/// One connection's key and everything it will publish.
struct Author {
    public: String,
    /// `["EVENT",{…}]`, one after the other.
    messages: Vec<String>,
    /// By the event's id in hexadecimal.
    indices: HashMap<String, usize>,
}

impl Fleet {
    /// What a message of the relay means for a connection.
    fn came(&self, connection: usize, message: &str) -> Result<Option<Came>> {
        if let Some(rest) = message.strip_prefix(r#"["OK",""#) {
            let (id, rest) = rest.split_at_checked(ID_DIGITS).context("an answer without an id")?;
            if !rest.starts_with("\",true") {
                return Ok(Some(Came::Refused(rest.to_owned())));
            }
            let index = self.authors[connection].indices.get(id).context("an answer to what was not sent")?;
            return Ok(Some(Came::Acknowledged(*index)));
        }
        if message.starts_with(r#"["EVENT","#) {
            let mark = br#""content":""#;
            let at = memmem::find(message.as_bytes(), mark).context("an event without content")? + mark.len();
            let content = message.as_bytes().get(at..at + self.payload_bytes).context("an event cut short")?;
            let (author, index) = self.payloads.read(content)?;
            return Ok(Some(Came::Delivered(author, index)));
        }
        if message.starts_with(r#"["EOSE","#) {
            return Ok(Some(Came::CaughtUp));
        }
        bail!("the relay says {message}")
    }
}

/// One connection.
pub(crate) struct Nostr {
    fleet: Arc<Fleet>,
    connection: usize,
    socket: WebSocket,
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

impl Author {
    fn new(connection: usize, events: usize, payloads: &Payloads, created_at_s: u64) -> Result<Self> {
        let secp = Secp256k1::new();
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let key = Keypair::from_secret_key(&secp, &SecretKey::from_byte_array(secret)?);
        let public = hexadecimal(&key.x_only_public_key().0.serialize());
        let mut messages = Vec::with_capacity(events);
        let mut indices = HashMap::with_capacity(events);
        for index in 0..events {
            let mut content = Vec::new();
            payloads.write(&mut content, (connection, index));
            let content = String::from_utf8(content)?;
            let signed = format!(r#"[0,"{public}",{created_at_s},{KIND},[],"{content}"]"#);
            let hash: [u8; 32] = Sha256::digest(signed.as_bytes()).into();
            let signature = hexadecimal(secp.sign_schnorr_no_aux_rand(&hash, &key).as_ref());
            let id = hexadecimal(&hash);
            messages.push(format!(
                r#"["EVENT",{{"id":"{id}","pubkey":"{public}","created_at":{created_at_s},"kind":{KIND},"tags":[],"content":"{content}","sig":"{signature}"}}]"#
            ));
            indices.insert(id, index);
        }
        Ok(Self { public, messages, indices })
    }
}

impl Nostr {
    fn filter(&self, subscription: Subscription) -> Option<serde_json::Value> {
        let public = |connection: usize| &self.fleet.authors[connection].public;
        match subscription {
            Subscription::None => None,
            Subscription::Everything { author } => {
                let all = self.fleet.authors[author].messages.len();
                Some(serde_json::json!({ "authors": [public(author)], "kinds": [KIND], "limit": all }))
            }
            Subscription::Others => {
                let group = self.connection / GROUP * GROUP;
                let others =
                    (group..group + GROUP).filter(|&one| one != self.connection && one < self.fleet.authors.len());
                let others: Vec<_> = others.map(public).collect();
                Some(serde_json::json!({ "authors": others, "kinds": [KIND], "since": self.fleet.created_at_s }))
            }
        }
    }
}

impl Connection for Nostr {
    type Fleet = Fleet;

    async fn prepare(arguments: &Arguments, _target: &Target, payloads: Arc<Payloads>) -> Result<Fleet> {
        let created_at_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let events = arguments.events_per_connection();
        let sign = |connection| Author::new(connection, events, &payloads, created_at_s);
        let all: Vec<usize> = (0..arguments.publishers()).collect();
        let share = all.len().div_ceil(std::thread::available_parallelism().map_or(1, usize::from));
        let authors = std::thread::scope(|scope| -> Result<Vec<Author>> {
            // All threads are started before the first is waited for.
            let mut threads = Vec::new();
            for part in all.chunks(share) {
                threads
                    .push(scope.spawn(|| part.iter().map(|&connection| sign(connection)).collect::<Result<Vec<_>>>()));
            }
            let mut authors = Vec::with_capacity(all.len());
            for thread in threads {
                authors.extend(thread.join().map_err(|_| anyhow::anyhow!("signing panicked"))??);
            }
            Ok(authors)
        })?;
        Ok(Fleet { payloads, payload_bytes: arguments.payload_bytes, created_at_s, authors })
    }

    async fn open(fleet: Arc<Fleet>, target: &Target, connection: usize, subscription: Subscription) -> Result<Self> {
        let mut nostr = Self { fleet, connection, socket: WebSocket::connect(target).await? };
        let Some(filter) = nostr.filter(subscription) else { return Ok(nostr) };
        nostr.socket.queue(serde_json::json!(["REQ", SUBSCRIPTION, filter]).to_string());
        nostr.flush().await?;
        let live = subscription == Subscription::Others;
        let mut came = Vec::new();
        while live && !came.contains(&Came::CaughtUp) {
            nostr.receive(&mut came).await?;
            ensure!(came.iter().all(|one| *one == Came::CaughtUp), "events of nobody yet");
        }
        Ok(nostr)
    }

    fn publish(&mut self, index: usize) -> Result<()> {
        let message = self.fleet.authors[self.connection].messages.get(index).context("nothing left to publish")?;
        self.socket.queue(message.clone());
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        self.socket.flush().await
    }

    async fn receive(&mut self, came: &mut Vec<Came>) -> Result<()> {
        for message in self.socket.receive().await? {
            came.extend(self.fleet.came(self.connection, &message)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use secp256k1::{XOnlyPublicKey, schnorr};

    use super::*;

    fn fleet() -> Result<Fleet> {
        let payloads = Arc::new(Payloads::new(64)?);
        let author = Author::new(0, 2, &payloads, 1_760_000_000)?;
        Ok(Fleet { payloads, payload_bytes: 64, created_at_s: 1_760_000_000, authors: vec![author] })
    }

    fn bytes<const N: usize>(value: &serde_json::Value) -> Result<[u8; N]> {
        let text = value.as_str().context("no text")?;
        let digits = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
        let decoded: Vec<u8> = digits.collect::<Result<_, _>>()?;
        Ok(decoded.as_slice().try_into()?)
    }

    #[test]
    fn events_have_the_id_and_the_signature_of_nip_01() -> Result<()> {
        let fleet = fleet()?;
        let message: serde_json::Value = serde_json::from_str(&fleet.authors[0].messages[1])?;
        let event = &message[1];
        let of = |name: &str| event[name].clone();
        let signed = serde_json::json!([0, of("pubkey"), of("created_at"), of("kind"), of("tags"), of("content")]);
        let hash: [u8; 32] = Sha256::digest(signed.to_string().as_bytes()).into();
        assert_eq!(hash, bytes::<32>(&event["id"])?);
        let key = XOnlyPublicKey::from_byte_array(bytes(&event["pubkey"])?)?;
        let signature = schnorr::Signature::from_byte_array(bytes(&event["sig"])?);
        Secp256k1::new().verify_schnorr(&signature, &hash, &key)?;
        Ok(())
    }

    #[test]
    fn what_a_relay_says_is_told_apart() -> Result<()> {
        let fleet = fleet()?;
        let sent = &fleet.authors[0].messages[1];
        let id = &sent[r#"["EVENT",{"id":""#.len()..][..ID_DIGITS];
        let delivered = sent.replacen(r#"["EVENT","#, r#"["EVENT","s","#, 1);
        assert_eq!(fleet.came(0, &delivered)?, Some(Came::Delivered(0, 1)));
        assert_eq!(fleet.came(0, &format!(r#"["OK","{id}",true,""]"#))?, Some(Came::Acknowledged(1)));
        assert!(matches!(fleet.came(0, &format!(r#"["OK","{id}",false,"blocked"]"#))?, Some(Came::Refused(_))));
        assert_eq!(fleet.came(0, r#"["EOSE","s"]"#)?, Some(Came::CaughtUp));
        for wrong in [r#"["NOTICE","slow down"]"#, r#"["OK","00",true,""]"#, r#"["EVENT","s",{}]"#] {
            assert!(fleet.came(0, wrong).is_err(), "{wrong}");
        }
        Ok(())
    }
}
