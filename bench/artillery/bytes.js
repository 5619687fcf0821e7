'use strict';
// Encoding and hashing as docs/reference/protocol.md has it: minimal MessagePack, BLAKE3 with contexts.

const { Encoder, decode } = require('@msgpack/msgpack');
const { blake3 } = require('@noble/hashes/blake3');

const encoder = new Encoder({ useBigInt64: true });

/** Minimal MessagePack. Integers above 32 bits have to be BigInt: they would become floats. */
function pack(value) {
  return Buffer.from(encoder.encode(value));
}

/** One MessagePack value; integers above 32 bits come as BigInt. */
function unpack(bytes) {
  return decode(bytes, { useBigInt64: true });
}

/** BLAKE3 derive-key with a context over the concatenation. */
function derive(context, ...parts) {
  return Buffer.from(blake3(Buffer.concat(parts), { context: Buffer.from(context) }));
}

/** Plain BLAKE3. */
function hash(...parts) {
  return Buffer.from(blake3(Buffer.concat(parts)));
}

/** What `chain` is before the first event of a stream. */
function chain0(userKey, stream) {
  return derive('keepstep/v1/chain-0', userKey, Buffer.from(stream));
}

/** A quoted prefix of the protocol: the text and one zero byte. */
function prefix(text) {
  return Buffer.from(`${text}\0`);
}

module.exports = { chain0, derive, hash, pack, prefix, unpack };
