// A flood of WebSocket upgrades at the device port by clients that say nothing after: what the server must bound.
import { check } from 'k6';
import { Counter, Rate } from 'k6/metrics';
import ws from 'k6/ws';

import { deviceUrl } from './common.js';

const upgraded = new Rate('upgraded');
const refused = new Counter('refused_upgrades');

export const options = {
  summaryTrendStats: ['med', 'p(90)', 'p(99)', 'max', 'count'],
  scenarios: {
    // Each closes at once: what an upgrade costs.
    brief: { executor: 'constant-arrival-rate', exec: 'brief', rate: 300, duration: '15s', preAllocatedVUs: 64 },
    // More that stay and are silent than one address may have: they are refused, and nothing else is.
    silent: { executor: 'per-vu-iterations', exec: 'silent', startTime: '17s', vus: 128, iterations: 1, maxDuration: '25s' },
  },
  thresholds: { 'checks{scenario:brief}': ['rate==1'], 'upgraded{scenario:brief}': ['rate==1'], 'upgraded{scenario:silent}': ['rate>0', 'rate<1'] },
};

function connect(linger) {
  const answer = ws.connect(deviceUrl, { headers: { 'Sec-WebSocket-Protocol': 'keepstep.v1' } }, (socket) => {
    socket.on('open', () => linger || socket.close());
  });
  upgraded.add(answer.status === 101);
  if (answer.status !== 101) {
    refused.add(1);
  }
  return answer;
}

export function brief() {
  check(connect(false), { 'it was upgraded': ({ status }) => status === 101 });
}

export function silent() {
  // The server's deadline for a handshake ends the connection.
  try {
    connect(true);
  } catch {
    upgraded.add(false);
    refused.add(1);
  }
}
