'use strict';
// What Artillery's virtual users do: each is a device of a user of its own.

const { Device } = require('./device');
const { PAYLOAD_BYTES, STREAM, register } = require('./prepare');
const { Session } = require('./session');

function setting(name) {
  const value = process.env[name];
  if (!value) {
    throw new Error(`${name} is not set`);
  }
  return value;
}

/** Begins an account over REST. */
async function begin(context, events) {
  const device = new Device();
  const from = performance.now();
  await register(device, setting('REST_URL'));
  events.emit('histogram', 'keepstep.register_ms', performance.now() - from);
  context.vars.device = device;
}

/** Upgrade and mutual handshake. */
async function connect(context, events) {
  const session = await Session.open(setting('DEVICE_URL'), context.vars.device);
  events.emit('histogram', 'keepstep.upgrade_ms', session.upgradeMs);
  events.emit('histogram', 'keepstep.handshake_ms', session.handshakeMs);
  events.emit('counter', 'keepstep.sessions', 1);
  context.vars.session = session;
}

/** One message of `eventsPerMessage` events, and its acknowledgement. */
async function publish(context, events) {
  const { device, session } = context.vars;
  const timeMs = Date.now();
  const signed = Array.from({ length: Number(context.vars.eventsPerMessage ?? 1) }, () =>
    device.event(STREAM, Buffer.alloc(PAYLOAD_BYTES, 'a'), timeMs),
  );
  const begin = performance.now();
  const count = await session.publish(signed);
  if (count !== signed.length) {
    throw new Error(`${count} of ${signed.length} events were acknowledged`);
  }
  events.emit('histogram', 'keepstep.acknowledge_ms', performance.now() - begin);
  events.emit('counter', 'keepstep.acknowledged_events', count);
}

/** Ends the session. */
async function close(context, events) {
  await context.vars.session.close();
  events.emit('counter', 'keepstep.sessions_closed', 1);
}

module.exports = { begin, close, connect, publish };
