"""The four policies against a plain model, over random events of several devices, and what compaction leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from keepstep.eventlog.store import COMPACTION_DELAY_MS
from keepstep.model import Kind, Policy, Principal
from keepstep.protocol.messages import Result, ResultAccepted, ResultError
from keepstep.protocol.policy import encode_policy
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, UserFixture, submission
from tests.support.logs import MemoryPlace, create_account, enrol, read_all

STREAM = "shared"
KEYS = [bytes([number]) * 16 for number in range(2)]


@dataclass
class Model:
    """What the stream should be, one rule after the other."""

    policy: Policy = Policy.APPEND
    ttl_max_s: int | None = None
    chains: list[bytes] = field(default_factory=list)
    last_seq: dict[bytes, int] = field(default_factory=dict)
    contenders: dict[bytes, list[tuple[int, bytes, int]]] = field(default_factory=dict)
    payloads: list[bytes | None] = field(default_factory=list)

    def refusal(self, device: DeviceFixture, draft: dict[str, Any], n: int) -> str | None:
        """The code with which the next event is refused, if it is."""
        if draft["kind"] == Kind.POLICY:
            changes = self.policy not in (Policy.APPEND, draft["policy"])
            return "unprocessable" if self.chains and changes else None
        ttl_s = draft["ttl_s"]
        if self.ttl_max_s is not None and (ttl_s is None or ttl_s > self.ttl_max_s):
            return "unprocessable"
        if self.policy is Policy.LATEST and draft["key"] is None:
            return "unprocessable"
        if self.policy is Policy.EXPECT:
            head = (len(self.chains), self.chains[-1])
            own = draft["base"] == n - 1 and self.last_seq.get(device.device_id) == len(self.chains)
            return None if draft["base"] == head or own else "conflict"
        return None

    def store(self, device: DeviceFixture, draft: dict[str, Any], payload: bytes, chain: bytes) -> None:
        """The event is stored."""
        self.chains.append(chain)
        self.payloads.append(payload)
        self.last_seq[device.device_id] = len(self.chains)
        if draft["kind"] == Kind.POLICY:
            self.policy, self.ttl_max_s = draft["policy"], draft["ttl_max_s"]
        elif self.policy is Policy.LATEST:
            rank = (draft["hlc"], device.device_id, len(self.chains))
            self.contenders.setdefault(draft["key"], []).append(rank)

    def compacted(self) -> list[bytes | None]:
        """The payloads that are left of it an hour later."""
        losers = {rank[2] for ranks in self.contenders.values() for rank in ranks if rank != max(ranks)}
        return [None if seq in losers else payload for seq, payload in enumerate(self.payloads, 1)]


def drafts(model: Model, n: int) -> st.SearchStrategy[dict[str, Any]]:
    """Mostly application events, with bases that are right, nearly right and wrong."""
    head = (len(model.chains), model.chains[-1]) if model.chains else (0, bytes(32))
    bases = [None, head, head, (head[0], bytes(32)), (head[0] + 1, head[1]), n - 1, n - 1, n]
    application = st.fixed_dictionaries(
        {
            "kind": st.just(Kind.APPLICATION),
            "base": st.sampled_from(bases),
            "key": st.sampled_from([None, *KEYS, *KEYS]),
            "hlc": st.integers(0, 3),
            "ttl_s": st.sampled_from([None, 60, 61]),
        }
    )
    policy = st.fixed_dictionaries(
        {
            "kind": st.just(Kind.POLICY),
            "policy": st.sampled_from(list(Policy)),
            "ttl_max_s": st.sampled_from([None, None, 60]),
        }
    )
    return st.one_of(*[application] * 4, policy)


def sign(device: DeviceFixture, draft: dict[str, Any], number: int) -> SignedEvent:
    """The device's next event; its payload is its own."""
    if draft["kind"] == Kind.POLICY:
        payload = encode_policy(draft["policy"], ttl_max_s=draft["ttl_max_s"])
        return device.event(STREAM, payload, kind=Kind.POLICY)
    chosen = {name: draft[name] for name in ("base", "key", "hlc", "ttl_s")}
    return device.event(STREAM, b"event %d" % number, **chosen)


async def play(data: st.DataObject) -> None:
    """Append event by event; compare answers, policy and what is left in the end."""
    place = MemoryPlace()
    nodes = [place.node(), place.node()]
    user = UserFixture("modelled")
    devices = [DeviceFixture(user, f"device {number}") for number in range(3)]
    principals: list[Principal] = [await create_account(place, nodes[0], devices[0])]
    principals += [await enrol(place, nodes[0], devices[0], device) for device in devices[1:]]
    model = Model()
    for number in range(data.draw(st.integers(1, 24))):
        which = data.draw(st.integers(0, len(devices) - 1))
        device, node = devices[which], nodes[data.draw(st.integers(0, 1))]
        before = device.authored.get(STREAM, (0, bytes(32)))
        draft = data.draw(drafts(model, before[0] + 1))
        event = sign(device, draft, number)
        expected = model.refusal(device, draft, event.n)
        ((result,),) = (await node.append([submission(principals[which], event)], now_ms=NOW_MS)).results
        check(result, expected, model)
        if isinstance(result, ResultAccepted):
            assert event.payload is not None
            model.store(device, draft, event.payload, result.chain)
        else:
            device.authored[STREAM] = before
    if model.chains:
        reader = place.node()
        info = await reader.stream(principals[0].user_pk, STREAM)
        assert (info.policy, info.ttl_max_s, info.head.seq) == (model.policy, model.ttl_max_s, len(model.chains))
        await place.maintenance.compact(now_ms=NOW_MS + COMPACTION_DELAY_MS, rows_max=1000)
        assert (await read_all(reader, principals[0], STREAM)).payloads == model.compacted()


def check(result: Result, expected: str | None, model: Model) -> None:
    """The answer is the model's."""
    if expected is None:
        assert isinstance(result, ResultAccepted)
        assert result.first_seq == len(model.chains) + 1
        return
    assert isinstance(result, ResultError)
    detail = [len(model.chains), model.chains[-1]] if expected == "conflict" else []
    assert (result.code, result.detail) == (expected, detail)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_policies_are_the_model(data: st.DataObject) -> None:
    """Over two nodes, whose memories of the stream are often out of date."""
    trio.run(play, data)
