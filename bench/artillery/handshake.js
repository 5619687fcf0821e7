'use strict';
// The device's side of the handshake and of records, without I/O (protocol.md section 2).

const crypto = require('node:crypto');

const { derive, pack, prefix, unpack } = require('./bytes');
const { agree, hkdf, keyPair, sign, verify } = require('./keys');

const VERSION = 1;
const CIPHERS = { 1: 'aes-256-gcm', 2: 'chacha20-poly1305' };
const TAG_BYTES = 16;
const NONCE_BYTES = 12;
const RECORDS_MAX = 2n ** 20n;

/** One direction of a session: seals or opens records under a counter that is never sent. */
class RecordKey {
  constructor(suite, secret, aad) {
    this.cipher = CIPHERS[suite];
    this.secret = secret;
    this.aad = aad;
    this.counter = 0n;
  }

  /** Records that may still be sealed before the key has to change. */
  get left() {
    return RECORDS_MAX - this.counter;
  }

  seal(message) {
    const cipher = crypto.createCipheriv(this.cipher, this.secret, this.#nonce(), { authTagLength: TAG_BYTES });
    cipher.setAAD(this.aad, { plaintextLength: message.length });
    return Buffer.concat([cipher.update(message), cipher.final(), cipher.getAuthTag()]);
  }

  /** Throws where the record is not the next one. */
  open(record) {
    const body = record.subarray(0, record.length - TAG_BYTES);
    const decipher = crypto.createDecipheriv(this.cipher, this.secret, this.#nonce(), { authTagLength: TAG_BYTES });
    decipher.setAAD(this.aad, { plaintextLength: body.length });
    decipher.setAuthTag(record.subarray(record.length - TAG_BYTES));
    return Buffer.concat([decipher.update(body), decipher.final()]);
  }

  /** The next secret: HKDF's expand alone, which is one HMAC for 32 bytes. */
  rekey() {
    const info = Buffer.concat([Buffer.from('keepstep/v1/rekey'), Buffer.from([1])]);
    this.secret = crypto.createHmac('sha256', this.secret).update(info).digest();
    this.counter = 0n;
  }

  #nonce() {
    const nonce = Buffer.alloc(NONCE_BYTES);
    nonce.writeBigUInt64BE(this.counter, NONCE_BYTES - 8);
    this.counter += 1n;
    return nonce;
  }
}

/** A handshake: `hello` is sent, its answer given to `receive`, which gives what is sent next, and so `ready`. */
class Handshake {
  constructor(device, serverKey, { suite = 1, ephemeral = keyPair('x25519'), nonce = crypto.randomBytes(32) } = {}) {
    this.device = device;
    this.serverKey = serverKey;
    this.suite = suite;
    this.ephemeral = ephemeral;
    this.hello = pack([1, [VERSION], [suite], ephemeral.publicKey, nonce]);
  }

  /** Checks ServerHello against the pinned key; ClientAuth, sealed. */
  receive(serverHello) {
    const [type, core, serverSignature] = unpack(serverHello);
    const [version, suite, serverEphemeral, serverNonce, serverKey] = unpack(core);
    if (type !== 2 || version !== VERSION || suite !== this.suite) {
      throw new Error('not the ServerHello that was asked for');
    }
    if (!this.serverKey.equals(serverKey)) {
      throw new Error('this server has another key than the one pinned');
    }
    if (serverNonce.every((byte) => byte === 0)) {
      throw new Error("the server's nonce is all zero");
    }
    const th1 = derive('keepstep/v1/th1', this.hello, core);
    verify(this.serverKey, serverSignature, prefix('keepstep/v1/server-auth'), th1);
    // node refuses an all-zero result itself.
    const shared = agree(this.ephemeral, serverEphemeral);
    const handshakeKeys = hkdf(th1, shared, 'keepstep/v1/hs', 64);

    const clientCore = pack([this.device.userKey, this.device.id, this.device.key.publicKey, 'none', {}]);
    const th2 = derive('keepstep/v1/th2', th1, serverSignature, clientCore);
    const signature = sign(this.device.key, prefix('keepstep/v1/device-auth'), th2);
    const th3 = derive('keepstep/v1/th3', th2, signature);
    const keys = hkdf(th3, shared, 'keepstep/v1/ap', 96);
    this.sealer = new RecordKey(this.suite, keys.subarray(0, 32), th3);
    this.opener = new RecordKey(this.suite, keys.subarray(32, 64), th3);
    return new RecordKey(this.suite, handshakeKeys.subarray(0, 32), th1).seal(pack([3, clientCore, signature]));
  }

  /** Opens Ready: the session is active. The server's limits. */
  ready(record) {
    const [type, , , limits] = unpack(this.opener.open(record));
    if (type !== 4) {
      throw new Error('not a Ready');
    }
    return limits;
  }
}

module.exports = { Handshake, RecordKey };
