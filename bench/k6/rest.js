// REST: tokens for signed challenges, publishing signed events, reading pages. One after the other, each by itself.
import { check } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { Counter } from 'k6/metrics';

import { authenticate, authorization, eachDevice, restUrl, users } from './common.js';

const PAGE = 500;
const published = new Counter('published_events');
const readEvents = new Counter('read_events');

export const options = {
  summaryTrendStats: ['med', 'p(90)', 'p(99)', 'max', 'count'],
  scenarios: {
    ...eachDevice((device) => ({
      executor: 'per-vu-iterations',
      exec: 'publish',
      vus: 1,
      iterations: users[device].bodies.length,
      maxDuration: '30s',
      tags: { work: 'publish' },
    })),
    read: {
      executor: 'constant-arrival-rate',
      exec: 'read',
      tags: { work: 'read' },
      startTime: '31s',
      rate: 20,
      duration: '15s',
      preAllocatedVUs: 32,
    },
    // A network may ask for 120 challenges and tokens a minute.
    token: {
      executor: 'constant-arrival-rate',
      exec: 'token',
      tags: { work: 'token' },
      startTime: '47s',
      rate: 2,
      duration: '15s',
      preAllocatedVUs: 4,
    },
  },
  thresholds: {
    checks: ['rate==1'],
    // Bounds that nothing exceeds: the durations of each work are in the summary where there is a threshold on them.
    'http_req_duration{work:publish}': ['max<60000'],
    'http_req_duration{work:read}': ['max<60000'],
    'http_req_duration{work:token}': ['max<60000'],
    'http_reqs{work:publish}': ['count>0'],
    'http_reqs{work:read}': ['count>0'],
    'http_reqs{work:token}': ['count>0'],
  },
};

export function setup() {
  return users.map((user) => authenticate(user));
}

export function publish(tokens) {
  const user = Number(__ENV.DEVICE);
  const body = users[user].bodies[exec.vu.iterationInScenario];
  const answer = http.post(`${restUrl}/api/v1/events`, body, {
    headers: { ...authorization(tokens[user]), 'Content-Type': 'application/json' },
  });
  const results = answer.status === 200 ? answer.json('results') : [];
  // Runs of accepted events are one result.
  const accepted = results.reduce((sum, { result, count }) => sum + (result === 'accepted' ? count : 0), 0);
  check(answer, { 'every event was accepted': () => accepted === JSON.parse(body).events.length });
  published.add(accepted);
}

export function read(tokens) {
  const user = exec.scenario.iterationInTest % users.length;
  const address = `${restUrl}/api/v1/events?stream=${users[user].stream}&after=0&limit=${PAGE}`;
  const answer = http.get(address, { headers: authorization(tokens[user]) });
  const events = answer.status === 200 ? answer.json('events') : [];
  check(answer, { 'a page came': () => events.length > 0 && events[0].seq === 1 });
  readEvents.add(events.length);
}

export function token() {
  check(authenticate(users[exec.scenario.iterationInTest % users.length]), { 'a token came': (given) => given.length > 0 });
}
