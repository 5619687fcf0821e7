// Server-sent events: followers of every user's stream, while its device publishes into it.
import { check, sleep } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { Counter, Trend } from 'k6/metrics';
import { follow } from 'k6/x/keepstep';

import { authenticate, authorization, eachDevice, restUrl, users } from './common.js';

const FOLLOWERS_PER_USER = 8;
const PUBLISHED_EVERY_S = 0.1;
const BEGIN_S = 3;
const TIMEOUT_MS = 60_000;

const deliver = new Trend('deliver_ms', true);
const firstByte = new Trend('first_byte_ms', true);
const received = new Counter('received_events');

const bodies = users[0].bodies.length;
const eventsOf = (body) => JSON.parse(body).events.length;

export const options = {
  summaryTrendStats: ['med', 'p(90)', 'p(99)', 'max', 'count'],
  scenarios: {
    follow: {
      executor: 'per-vu-iterations',
      exec: 'followStream',
      vus: users.length * FOLLOWERS_PER_USER,
      iterations: 1,
      maxDuration: '70s',
    },
    ...eachDevice(() => ({
      executor: 'per-vu-iterations',
      exec: 'publish',
      startTime: `${BEGIN_S}s`,
      vus: 1,
      iterations: bodies - 1,
      maxDuration: '60s',
    })),
  },
  thresholds: { checks: ['rate==1'] },
};

/** Tokens; and a stream has to be there before anybody follows it. */
export function setup() {
  const tokens = users.map((user) => authenticate(user));
  tokens.forEach((token, user) => post(token, users[user].bodies[0]));
  return tokens;
}

function post(token, body) {
  const headers = { ...authorization(token), 'Content-Type': 'application/json' };
  return http.post(`${restUrl}/api/v1/events`, body, { headers });
}

export function followStream(tokens) {
  const user = exec.scenario.iterationInTest % users.length;
  const count = users[user].bodies.reduce((sum, body) => sum + eventsOf(body), 0);
  const address = `${restUrl}/api/v1/events/live?stream=${users[user].stream}&after=0`;
  const followed = follow(address, tokens[user], count, TIMEOUT_MS);
  check(followed, {
    'the answer was 200': ({ status }) => status === 200,
    'every event came, once and in order': ({ events }) => (events || []).length === count && events.every(({ id }, at) => Number(id) === at + 1),
  });
  firstByte.add(followed.first_byte_ms);
  const before = eventsOf(users[user].bodies[0]);
  for (const event of followed.events || []) {
    received.add(1);
    // What was there when the follower came says nothing of delivery.
    if (Number(event.id) > before) {
      deliver.add(event.at_ms - JSON.parse(event.data).received_at_ms);
    }
  }
}

export function publish(tokens) {
  const device = Number(__ENV.DEVICE);
  const answer = post(tokens[device], users[device].bodies[exec.vu.iterationInScenario + 1]);
  check(answer, { 'it was taken': ({ status }) => status === 200 });
  sleep(PUBLISHED_EVERY_S);
}
