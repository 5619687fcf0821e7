// What the scripts share: who the users are, and how a device gets a token.
import http from 'k6/http';
import { SharedArray } from 'k6/data';
import { signChallenge } from 'k6/x/keepstep';

const JSON_HEADERS = { 'Content-Type': 'application/json' };

export const restUrl = __ENV.REST_URL;
export const deviceUrl = __ENV.DEVICE_URL.split('#')[0];
const serverKey = __ENV.DEVICE_URL.split('#')[1];

/** Made beforehand by bench/artillery/prepare.js. */
export const users = new SharedArray('users', () => JSON.parse(open(__ENV.USERS)));

export function authorization(token) {
  return { Authorization: `Bearer ${token}` };
}

/** An access token for a signed challenge. */
export function authenticate(user) {
  const who = { user_id: user.user_id, device_id: user.device_id };
  const challenge = post('challenge', { ...who, purpose: 'token' });
  const device = { ...who, secret: user.secret, server_key: serverKey };
  const proof = signChallenge(device, restUrl, challenge.nonce, 'token');
  const signed = { ...who, device_key: proof.device_key, nonce: challenge.nonce, signature: proof.signature };
  return post('token', signed).access_token;
}

function post(what, body) {
  const answer = http.post(`${restUrl}/api/v1/auth/${what}`, JSON.stringify(body), { headers: JSON_HEADERS });
  if (answer.status !== 200) {
    throw new Error(`${what} was answered ${answer.status}: ${answer.body}`);
  }
  return answer.json();
}

/** A scenario for each device, whose number it is told in DEVICE: a device numbers its events, so one user sends them. */
export function eachDevice(scenario) {
  return Object.fromEntries(users.map((_, device) => [`device_${device}`, { ...scenario(device), env: { DEVICE: `${device}` } }]));
}
