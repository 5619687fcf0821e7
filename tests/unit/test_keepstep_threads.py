"""Which calls of the extension let other threads run, and which do not give the GIL away for little."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final

import pytest

from keepstep import _keepstep
from tests.support.events import DeviceFixture, UserFixture, submission, wire_events
from tests.support.ingesting import ingest, new_head, principal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ATTEMPTS: Final = 5_000
"""A thread that could run may still not be scheduled in time, on a busy machine least; one that could not never is."""
SWITCH_INTERVAL_S: Final = 1_000.0
LARGE: Final = bytes(1 << 20)

SEALER: Final = _keepstep.RecordSealer(2, bytes(32), b"")
SEALED: Final = _keepstep.RecordSealer(2, bytes(32), b"").seal(LARGE)
USER: Final = UserFixture("threaded")
DEVICE: Final = DeviceFixture(USER, "laptop")
EVENTS: Final = DEVICE.events("notes", 64)
RAW: Final = wire_events(*EVENTS[:10])
LARGE_RAW: Final = wire_events(DeviceFixture(USER, "phone").event("notes", bytes(1_000_000)))
SIGNED: Final = [
    (_keepstep.DeviceKey(DEVICE.device_key), bytes(300), _keepstep.ed25519_sign(DEVICE.device_secret, bytes(300)))
] * 64
ROWS: Final = [(seq, DEVICE.device_id, 5, event.header, event.sig, LARGE[:4096]) for seq, event in enumerate(EVENTS, 1)]
CHAINED: Final = [(seq, 5, event.header, LARGE) for seq, event in enumerate(EVENTS, 1)]

RELEASING: Final[dict[str, Callable[[], object]]] = {
    "ingest": lambda: ingest(submission(principal(DEVICE), *EVENTS), heads=[new_head(USER, "notes")]),
    "ed25519_verify_many": lambda: _keepstep.ed25519_verify_many(SIGNED),
    "encode_rows": lambda: _keepstep.encode_rows(ROWS),
    "verify_chain": lambda: _keepstep.verify_chain(USER.user_key, "notes", 0, USER.chain_0("notes"), CHAINED),
    "a large publish": lambda: _keepstep.Events.parse(LARGE_RAW, events_max=1, payload_bytes_max=1 << 20),
    "a large signature": lambda: _keepstep.ed25519_sign(bytes(32), LARGE),
    "a large hash": lambda: _keepstep.blake3(LARGE * 8),
    "a large sealing": lambda: _keepstep.aead_seal(1, bytes(32), bytes(12), b"", LARGE),
    "large records": lambda: SEALER.seal_many([LARGE, LARGE]),
    "a large record": lambda: _keepstep.RecordOpener(2, bytes(32), b"").open(SEALED),
}
KEEPING: Final[dict[str, Callable[[], object]]] = {
    "a publish": lambda: _keepstep.Events.parse(RAW, events_max=10, payload_bytes_max=1000),
    "a signature": lambda: _keepstep.ed25519_sign(bytes(32), bytes(300)),
    "a record": lambda: SEALER.seal(bytes(300)),
}


@pytest.fixture
def patient_interpreter() -> Iterator[None]:
    """No thread is ever made to give the GIL away: it does so by itself or keeps it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    yield
    sys.setswitchinterval(interval)


def other_thread_ran_meanwhile(call: Callable[[], object]) -> bool:
    """Whether another thread got the GIL between the start and the end of ``call``."""
    ready = threading.Lock()
    ready.acquire()
    done: list[bool] = []
    seen: list[bool] = []

    def watch() -> None:
        ready.acquire()
        seen.append(not done)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ready.release()
    call()
    done.append(True)
    watcher.join()
    return seen == [True]


@pytest.mark.usefixtures("patient_interpreter")
@pytest.mark.parametrize("name", sorted(RELEASING))
def test_heavy_calls_let_other_threads_run(name: str) -> None:
    """The event loop goes on while a worker thread verifies."""
    assert any(other_thread_ran_meanwhile(RELEASING[name]) for _ in range(ATTEMPTS))


@pytest.mark.usefixtures("patient_interpreter")
@pytest.mark.parametrize("name", sorted(KEEPING))
def test_light_calls_keep_the_interpreter(name: str) -> None:
    """Once given away it may come back only after a switch interval."""
    assert not any(other_thread_ran_meanwhile(KEEPING[name]) for _ in range(20))
