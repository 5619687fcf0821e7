'use strict';
// Raw 32-byte keys for node's crypto, which takes them in DER only.

const crypto = require('node:crypto');

const SECRET = { ed25519: '302e020100300506032b657004220420', x25519: '302e020100300506032b656e04220420' };
const PUBLIC = { ed25519: '302a300506032b6570032100', x25519: '302a300506032b656e032100' };
const KEY_BYTES = 32;

/** A secret key: `{secret, publicKey}`, the node object and the 32 public bytes. */
function keyPair(kind, secretBytes = crypto.randomBytes(KEY_BYTES)) {
  const der = Buffer.concat([Buffer.from(SECRET[kind], 'hex'), secretBytes]);
  const secret = crypto.createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
  const spki = crypto.createPublicKey(secret).export({ format: 'der', type: 'spki' });
  return { secret, publicKey: spki.subarray(spki.length - KEY_BYTES) };
}

function publicKey(kind, bytes) {
  const der = Buffer.concat([Buffer.from(PUBLIC[kind], 'hex'), bytes]);
  return crypto.createPublicKey({ key: der, format: 'der', type: 'spki' });
}

function sign(pair, ...parts) {
  return crypto.sign(null, Buffer.concat(parts), pair.secret);
}

/** Throws where the signature is not of that key. */
function verify(publicBytes, signature, ...parts) {
  if (!crypto.verify(null, Buffer.concat(parts), publicKey('ed25519', publicBytes), signature)) {
    throw new Error('a signature does not verify');
  }
}

function agree(pair, otherBytes) {
  return crypto.diffieHellman({ privateKey: pair.secret, publicKey: publicKey('x25519', otherBytes) });
}

function hkdf(salt, shared, info, length) {
  return Buffer.from(crypto.hkdfSync('sha256', shared, salt, info, length));
}

module.exports = { agree, hkdf, keyPair, sign, verify };
