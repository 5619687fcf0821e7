'use strict';
// The device in JavaScript against the protocol's own vectors: byte for byte what every other client says.

const assert = require('node:assert');
const fs = require('node:fs');
const path = require('node:path');
const test = require('node:test');

const { chain0, hash, pack, unpack } = require('./bytes');
const { Device } = require('./device');
const { Handshake, RecordKey } = require('./handshake');
const { keyPair, verify } = require('./keys');
const { parseDeviceUrl, stored } = require('./session');

const VECTORS = path.join(__dirname, '..', '..', 'tests', 'vectors');
const TIME_MS = 1_760_000_000_000;
const bytes = (text) => Buffer.from(text, 'hex');

function handshakes() {
  const vectors = JSON.parse(fs.readFileSync(path.join(VECTORS, 'handshake.json')));
  // What this device says: one suite, nothing to resume, no options.
  return vectors.filter(({ resume, suites_offered: suites }) => resume === 'none' && suites.length === 1);
}

function begin(vector) {
  const device = { userKey: bytes(vector.user_key), id: bytes(vector.device_id), key: keyPair('ed25519', bytes(vector.device_secret)) };
  const ephemeral = keyPair('x25519', bytes(vector.device_ephemeral_secret));
  return new Handshake(device, bytes(vector.server_key), { suite: vector.suite, ephemeral, nonce: bytes(vector.device_nonce) });
}

test('whole handshakes come out byte for byte', () => {
  assert.ok(handshakes().length > 0);
  for (const vector of handshakes()) {
    const handshake = begin(vector);
    assert.deepStrictEqual(handshake.hello, bytes(vector.client_hello));
    assert.deepStrictEqual(handshake.receive(bytes(vector.server_hello)), bytes(vector.client_auth));
    assert.ok(handshake.ready(bytes(vector.ready)));
    assert.deepStrictEqual(handshake.sealer.seal(bytes(vector.first_message_of_device)), bytes(vector.first_record_of_device));
    assert.deepStrictEqual(handshake.opener.open(bytes(vector.first_record_of_server)), bytes(vector.first_message_of_server));
  }
});

test('no changed answer of a server is taken', () => {
  const [vector] = handshakes();
  const message = bytes(vector.server_hello);
  for (let at = 0; at < message.length; at += 1) {
    const changed = Buffer.from(message);
    changed[at] ^= 1;
    assert.throws(() => begin(vector).receive(changed), undefined, `byte ${at}`);
  }
});

test('records are as the vectors have them, across a rekey', () => {
  for (const vector of JSON.parse(fs.readFileSync(path.join(VECTORS, 'records.json')))) {
    const key = new RecordKey(vector.suite, bytes(vector.secret), bytes(vector.aad));
    for (const { plaintext, record } of vector.records) {
      assert.deepStrictEqual(key.seal(bytes(plaintext)), bytes(record));
    }
    key.rekey();
    assert.deepStrictEqual(key.secret, bytes(vector.secret_after_rekey));
    assert.strictEqual(key.left, 2n ** 20n);
    const { plaintext, record } = vector.first_after_rekey;
    assert.deepStrictEqual(key.seal(bytes(plaintext)), bytes(record));
  }
});

test('a record that is not the next one does not open', () => {
  const [secret, aad] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)];
  const sealer = new RecordKey(1, secret, aad);
  sealer.seal(Buffer.from('first'));
  const second = sealer.seal(Buffer.from('second'));
  assert.throws(() => new RecordKey(1, secret, aad).open(second));
});

test('events are chained, signed and minimally encoded', () => {
  const device = new Device();
  const first = device.event('load', Buffer.from('one'), TIME_MS);
  const second = device.event('load', Buffer.from('two'), TIME_MS);
  const header = unpack(second.header);
  assert.strictEqual(header.length, 14);
  assert.deepStrictEqual([header[3], header[4]], ['load', 2]);
  assert.strictEqual(header[10], BigInt(TIME_MS) << 16n);
  assert.deepStrictEqual(pack(header), second.header);
  assert.notDeepStrictEqual(Buffer.from(header[5]), Buffer.alloc(16));
  verify(device.key.publicKey, first.signature, Buffer.from('keepstep/v1/event\0'), device.userKey, device.id, first.header);
});

test('the genesis lists the device and is signed by the root key', () => {
  const device = new Device();
  const [, , payload] = unpack(device.genesis(TIME_MS));
  const fields = unpack(payload);
  assert.deepStrictEqual(Buffer.from(fields[3][0]), device.id);
  const signed = [Buffer.from('keepstep/v1/root\0'), device.userKey, chain0(device.userKey, '$devices'), hash(pack(fields.slice(0, 4)))];
  verify(device.userKey, fields[4], ...signed);
});

test('only events that were stored count as acknowledged', () => {
  assert.strictEqual(stored([[0, 3, 1, 5, Buffer.alloc(32)], [0, 2, 4, 5, Buffer.alloc(32)]]), 5);
  assert.throws(() => stored([[2, 'forbidden', []]]), /forbidden/);
  assert.throws(() => stored([[1, null, null, null]]), /already/);
});

test('a device address without a key is refused', () => {
  const key = '0f'.repeat(32);
  assert.strictEqual(parseDeviceUrl(`ws://127.0.0.1:1/v1/connect#${key}`).serverKey.length, 32);
  assert.throws(() => parseDeviceUrl('ws://127.0.0.1:1/v1/connect'));
});
