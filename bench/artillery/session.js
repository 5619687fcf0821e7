'use strict';
// A device's session over a real WebSocket: publishes and waits for what the server acknowledges.

const WebSocket = require('ws');

const { pack, unpack } = require('./bytes');
const { Handshake } = require('./handshake');

const CONNECT_TIMEOUT_MS = 30_000;
const MESSAGE_BYTES_MAX = 2 * 1024 * 1024 + 16;
const PUBLISH = 16;
const REKEY = 26;
const BYE = 27;
const ACCEPTED = 64;
const ERROR = 71;
const DRAINING = 73;
const SERVER_REKEY = 75;

/** `ws://host:port/v1/connect#key` in its two parts. */
function parseDeviceUrl(text) {
  const [url, key] = text.split('#');
  if (!/^[0-9a-f]{64}$/.test(key ?? '')) {
    throw new Error("the device address ends with # and the server's key");
  }
  return { url, serverKey: Buffer.from(key, 'hex') };
}

class Session {
  /** Connects and authenticates; `upgradeMs` and `handshakeMs` say how long both took. */
  static async open(deviceUrl, device) {
    const { url, serverKey } = parseDeviceUrl(deviceUrl);
    const begin = performance.now();
    const socket = new WebSocket(url, ['keepstep.v1'], {
      perMessageDeflate: false,
      handshakeTimeout: CONNECT_TIMEOUT_MS,
      maxPayload: MESSAGE_BYTES_MAX,
    });
    const messages = new Incoming(socket);
    await messages.opened;
    const upgraded = performance.now();
    const handshake = new Handshake(device, serverKey);
    socket.send(handshake.hello);
    socket.send(handshake.receive(await messages.next()));
    const limits = handshake.ready(await messages.next());
    const session = new Session(socket, messages, handshake);
    session.limits = limits;
    session.upgradeMs = upgraded - begin;
    session.handshakeMs = performance.now() - upgraded;
    return session;
  }

  constructor(socket, messages, handshake) {
    this.socket = socket;
    this.messages = messages;
    this.sealer = handshake.sealer;
    this.opener = handshake.opener;
    this.rid = 0;
  }

  /** Publishes signed events in one message and waits for the answer; the events that were stored. */
  async publish(events) {
    this.rid += 1;
    this.#send([PUBLISH, this.rid, events.map(({ header, signature, payload }) => [header, signature, payload, null])]);
    for (;;) {
      const [type, rid, answers] = unpack(this.opener.open(await this.messages.next()));
      if (type === SERVER_REKEY) {
        this.opener.rekey();
      } else if (type === ACCEPTED && rid === this.rid) {
        return stored(answers);
      } else if (type === ERROR || type === DRAINING) {
        throw new Error(`the server answered ${type === ERROR ? answers : 'that it drains'}`);
      }
    }
  }

  /** Says goodbye and closes. */
  async close() {
    this.#send([BYE]);
    this.socket.close(1000);
    await this.messages.closed;
  }

  #send(message) {
    if (this.sealer.left === 1n) {
      this.socket.send(this.sealer.seal(pack([REKEY])));
      this.sealer.rekey();
    }
    this.socket.send(this.sealer.seal(pack(message)));
  }
}

/** Counts the events of an answer that were stored; throws for one that was not. */
function stored(answers) {
  let count = 0;
  for (const [kind, first] of answers) {
    if (kind !== 0) {
      throw new Error(kind === 2 ? `refused: ${first}` : 'an event was there already');
    }
    count += Number(first);
  }
  return count;
}

/** Binary messages in their order, to be waited for. */
class Incoming {
  constructor(socket) {
    this.arrived = [];
    this.waiting = null;
    this.failure = null;
    this.closed = new Promise((resolve) => socket.once('close', resolve));
    this.opened = new Promise((resolve, reject) => {
      socket.once('open', resolve);
      socket.once('error', reject);
    });
    socket.on('message', (data) => this.#give(data));
    socket.once('error', (error) => this.#fail(error));
    socket.once('close', (code) => this.#fail(new Error(`the server closed the connection with ${code}`)));
  }

  next() {
    if (this.arrived.length > 0) {
      return Promise.resolve(this.arrived.shift());
    }
    if (this.failure) {
      return Promise.reject(this.failure);
    }
    return new Promise((resolve, reject) => {
      this.waiting = { resolve, reject };
    });
  }

  #give(data) {
    if (this.waiting) {
      this.waiting.resolve(data);
      this.waiting = null;
    } else {
      this.arrived.push(data);
    }
  }

  #fail(error) {
    this.failure ??= error;
    this.waiting?.reject(this.failure);
    this.waiting = null;
  }
}

module.exports = { Session, parseDeviceUrl, stored };
