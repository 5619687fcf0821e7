'use strict';
// Begins accounts and signs events for tools that cannot sign: node prepare.js USERS BODIES EVENTS_IN_A_BODY
// with REST_URL set. Prints JSON: of each user its ids, its device's secret, and bodies for POST /api/v1/events, in order.

const { unpack } = require('./bytes');
const { Device } = require('./device');

const PAYLOAD_BYTES = 256;
const STREAM = 'load';

/** Begins the account of a device over REST; the device knows its position in `$devices` from then on. */
async function register(device, restUrl) {
  const answer = await fetch(`${restUrl}/api/v1/accounts`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/msgpack' },
    body: device.genesis(Date.now()),
  });
  const body = Buffer.from(await answer.arrayBuffer());
  if (!answer.ok) {
    throw new Error(`the genesis was answered ${answer.status}: ${body}`);
  }
  const [seq, , chain] = unpack(body);
  device.devicesSeen = [seq, chain];
}

function format(id) {
  const digits = id.toString('hex');
  return [digits.slice(0, 8), digits.slice(8, 12), digits.slice(12, 16), digits.slice(16, 20), digits.slice(20)].join('-');
}

function publication(device, count) {
  const events = Array.from({ length: count }, () => {
    const { header, signature, payload } = device.event(STREAM, Buffer.alloc(PAYLOAD_BYTES, 'a'), Date.now());
    return { header: header.toString('base64url'), sig: signature.toString('base64url'), payload: payload.toString('base64url') };
  });
  return JSON.stringify({ events });
}

async function main(restUrl, users, bodies, events) {
  const prepared = [];
  for (let user = 0; user < users; user += 1) {
    const device = new Device();
    await register(device, restUrl);
    const seed = device.key.secret.export({ format: 'der', type: 'pkcs8' }).subarray(-32);
    prepared.push({
      user_id: device.userKey.toString('hex'),
      device_id: format(device.id),
      secret: seed.toString('hex'),
      stream: STREAM,
      bodies: Array.from({ length: bodies }, () => publication(device, events)),
    });
  }
  process.stdout.write(JSON.stringify(prepared));
}

if (require.main === module) {
  const [users, bodies, events] = process.argv.slice(2).map(Number);
  main(process.env.REST_URL, users, bodies, events).catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}

module.exports = { PAYLOAD_BYTES, STREAM, register };
