'use strict';
// A user with one device: the genesis that begins the account, and signed events (protocol.md sections 1 and 3).

const crypto = require('node:crypto');

const { chain0, derive, hash, pack, prefix } = require('./bytes');
const { keyPair, sign } = require('./keys');

const DEVICES = '$devices';
const CAPABILITIES = 7; // publish, subscribe and manage
const KIND = { application: 0, account: 5 };

function uuid(version, timeMs) {
  const id = crypto.randomBytes(16);
  if (timeMs !== undefined) {
    id.writeUIntBE(timeMs, 0, 6);
  }
  id[6] = (id[6] & 0x0f) | (version << 4);
  id[8] = (id[8] & 0x3f) | 0x80;
  return id;
}

/** A device of a user of its own. */
class Device {
  constructor() {
    this.root = keyPair('ed25519');
    this.userKey = this.root.publicKey;
    this.key = keyPair('ed25519');
    this.id = uuid(4);
    this.devicesSeen = [0, chain0(this.userKey, DEVICES)];
    /** By stream: number and hash of the last event that was signed. */
    this.last = new Map();
  }

  /** The body that begins the account: `[header, sig, payload]`. */
  genesis(timeMs) {
    const entry = [this.id, this.key.publicKey, keyPair('x25519').publicKey, CAPABILITIES, BigInt(timeMs), null, Buffer.alloc(0)];
    const nextRoot = derive('keepstep/v1/next-root', keyPair('ed25519').publicKey);
    const fields = [0, this.userKey, nextRoot, entry];
    const chain = chain0(this.userKey, DEVICES);
    const rootSignature = sign(this.root, prefix('keepstep/v1/root'), this.userKey, chain, hash(pack(fields)));
    const payload = pack([...fields, rootSignature]);
    const { header, signature } = this.event(DEVICES, payload, timeMs);
    return pack([header, signature, payload]);
  }

  /** Signs the next event of a stream, which nobody else writes. */
  event(stream, payload, timeMs) {
    const last = this.last.get(stream) ?? { n: 0, hash: Buffer.alloc(32) };
    const n = last.n + 1;
    const header = pack([
      1,
      stream === DEVICES ? KIND.account : KIND.application,
      uuid(7, timeMs),
      stream,
      n,
      last.hash.subarray(0, 16),
      null,
      [0, chain0(this.userKey, stream)],
      this.devicesSeen,
      null,
      BigInt(timeMs) << 16n,
      null,
      payload.length,
      hash(payload),
    ]);
    const signature = sign(this.key, prefix('keepstep/v1/event'), this.userKey, this.id, header);
    this.last.set(stream, { n, hash: derive('keepstep/v1/event-hash', header, signature) });
    return { header, signature, payload, n };
  }
}

module.exports = { Device };
