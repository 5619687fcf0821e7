"""Policies and erasures, through real sockets and PostgreSQL: what devices are answered, and what they read."""

from __future__ import annotations

from pathlib import Path

from keepstep.model import Kind, Policy, inbox_of
from keepstep.protocol.messages import Read, ReadResult
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.snapshot import encode_erase
from tests.e2e.test_server_corridor import serving


async def test_two_devices_write_at_once_and_one_learns_of_it(data_dir: Path, database_url: str) -> None:
    """The policy's own event makes the stream; the loser is told the head, builds on it, and is stored."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        laptop = await client.enrol(phone, "laptop")
        async with client.session(phone) as on_phone, client.session(laptop, nonce="laptop") as on_laptop:
            policy = phone.event("shared", encode_policy(Policy.EXPECT), kind=Kind.POLICY)
            (created,) = await on_phone.publish(policy)
            head = (1, created.chain)
            (won,) = await on_phone.publish(phone.event("shared", b"phone", base=head))
            (lost,) = await on_laptop.publish(laptop.sign("shared", b"laptop", n=1, prev=bytes(16), base=head))
            assert (lost.code, lost.detail) == ("conflict", [2, won.chain])
            (stored,) = await on_laptop.publish(laptop.event("shared", b"laptop", base=(2, won.chain)))
            assert stored.first_seq == 3


async def test_what_is_erased_is_gone_for_the_next_reader(data_dir: Path, database_url: str) -> None:
    """Its header and its place stay."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        async with client.session(phone) as session:
            erasure = phone.event("notes", b"secret"), phone.event("notes", b"kept")
            await session.publish(*erasure)
            named = encode_erase({phone.device_id: [1]})
            (erased,) = await session.publish(phone.event("notes", named, kind=Kind.ERASE))
            assert erased.first_seq == 3
            await session.send(Read(1, "notes", 0, 10))
            result = await session.expect(ReadResult)
            assert [row[5] for row in result.rows] == [None, b"kept", named]
            assert result.rows[0][3] == erasure[0].header


async def test_a_message_waits_in_an_inbox(data_dir: Path, database_url: str) -> None:
    """Whoever writes it, its device reads it when it comes."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        laptop = await client.enrol(phone, "laptop")
        inbox = inbox_of(laptop.device_id)
        async with client.session(phone) as session:
            await session.publish(phone.event(inbox, b"for the laptop"))
        async with client.session(laptop, nonce="laptop") as session:
            await session.send(Read(1, inbox, 0, 10))
            result = await session.expect(ReadResult)
            assert [row[5] for row in result.rows] == [b"for the laptop"]
