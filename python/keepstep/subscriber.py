"""One session's positions in the streams it follows, and how they move (protocol.md section 4)."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

from keepstep.credit import Credit
from keepstep.errors import ArchiveUnavailable, ProtocolError, Pruned, Unavailable
from keepstep.interfaces import RESUMED_TOGETHER_MAX
from keepstep.model import DEVICES_STREAM, RESERVED_STREAMS, Capability, Position, is_inbox, reading_refusal
from keepstep.pagereader import PageReader, nothing_after
from keepstep.pages import encode_events
from keepstep.protocol.messages import CaughtUp, Head, Resumed, Rewound, Subscribe, encode
from keepstep.resuming import no_rewinds, position_of, seq_of, tell_pruned
from keepstep.subscription import AHEAD_BYTES_MAX, Subscription

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from keepstep.heads import HeadSigner
    from keepstep.interfaces import Clock, EventLog, Followed, Page, StreamInfo
    from keepstep.model import Principal, StreamPk, UserPk
    from keepstep.protocol.messages import SignedHead, SignedRewind
    from keepstep.subscription import Addition, Start, SubscriberLimits
    from keepstep.tallies import Tally

_Refusal = Literal["forbidden", "unknown_stream", "unknown_position", "limit_exceeded"]

HEADS_AHEAD_MAX: Final = 64
"""Heads of one session that are signed at once, while nobody is served."""
_NO_AUTHOR: Final = (0, bytes(32))


class Subscriber:
    """The streams one session follows; live, owned by its session.

    ``pull`` is called by the session's writer alone; everything else only marks what it will find.

    Args:
        log: the log.
        signer: of heads.
        clock: the one ``received_at`` follows.
        principal: the session's device.
        limits: see ``SubscriberLimits``.
        wake: tells the session's writer that ``pull`` may have something.
        relayed: counts the events of each page.
        rewinds: the restores that set a stream of a user back, signed; raises Unavailable.
        holds: whether the writer waits; then no page is made, since what is erased meanwhile must not go any more.

    Attributes:
        ahead: pages of commits and signed heads, encoded; the position is moved over them. The writer may take them
            without ``pull``.
        ahead_bytes: of them; whoever takes them sets it to 0.
        is_marked: whether there may be something beside them. Whoever pulls until nothing ``is_due`` may take it back.
        generation: of the log that the positions are in.
        refusals: refused subscriptions not yet told.
    """

    def __init__(
        self,
        log: EventLog,
        signer: HeadSigner,
        clock: Clock,
        *,
        principal: Principal,
        limits: SubscriberLimits,
        wake: Callable[[], object],
        relayed: Tally,
        rewinds: Callable[[UserPk, bytes, str], Awaitable[list[SignedRewind]]] = no_rewinds,
        holds: Callable[[], bool] = bool,
    ) -> None:
        self._rewinds_of, self._holds = rewinds, holds
        self.principal = principal
        self._log = log
        self.generation = log.generation()
        self._signer = signer
        self._epoch = signer.epoch
        self._clock = clock
        self._limits = limits
        self._wake = wake
        self._relayed = relayed
        self._subscriptions: dict[str, Subscription] = {}
        self._by_pk: dict[StreamPk, Subscription] = {}
        self._sought: dict[str, None] = {}  # to be gone on with from where the device said
        self._begun: dict[str, None] = {}  # that came into being and are followed
        self._ready: OrderedDict[str, None] = OrderedDict()
        self.ahead: list[bytes] = []
        self.ahead_bytes = 0
        self.is_marked = False
        self._asks_database = False
        self._meanwhile: dict[StreamPk, int] | None = None  # what was committed while streams are sought
        self.refusals: list[tuple[str, _Refusal]] = []
        self._left: dict[str, None] = {}  # streams that ``all`` does not follow: a set is three times as large
        self._all = False
        self._list_due = False
        self._listing = False  # the list is being read, what is done with it follows what is wanted then
        self._credit = Credit(limits.unacked_bytes_max)
        self._pages = PageReader(log, clock, principal.user_pk, limits)
        self._told_safe_at_ms: int | None = None

    def close(self) -> None:
        """Wake nobody any more: whoever is woken holds this, and would wait for the garbage collector with it."""
        self._wake = self._holds = bool

    # -- what the device asks -----------------------------------------------------------------------------------

    def subscribe(self, message: Subscribe) -> None:
        """Follow streams; naming one again starts it anew from there."""
        if message.streams == "all":
            self._all = True
            self._list_due = self._list_due or not self._listing
            self._left.clear()
        else:
            for name, start in message.streams.items():
                self._add(name, start if isinstance(start, str) else Position(*start))
        self._call()

    def check_log(self) -> None:
        """Its positions are in the log as it is.

        Raises:
            ProtocolError: ``unavailable``: in another one, and the device has to resume in the one that is.
        """
        if self._log.generation() != self.generation:
            raise ProtocolError("unavailable", "the log is another one than this session read")

    async def _refused(self, name: str, answer: _Refusal) -> bytes:
        """The answer to a refused subscription.

        protocol.md section 4: who may write into an inbox and not read it learns its own last number there.
        """
        author = _NO_AUTHOR
        if is_inbox(name) and answer == "forbidden":
            for followed in await self._log.follow(self.principal, {name: 0}, every=False):
                author = followed.author
        rewinds = await self._rewinds_of(self.principal.user_pk, self.principal.user_key, name)
        return encode(Resumed(name, answer, None, author, rewinds))

    def _add(self, name: str, start: Start) -> bool:
        """Follow a stream; whether it is followed now."""
        refusal = self._refusal(name)
        if refusal is not None:
            self.refusals.append((name, refusal))
            return False
        self._remove(name)
        self._left.pop(name, None)
        self._subscriptions[name] = Subscription(name, start)
        self._sought[name] = None
        return True

    def _refusal(self, name: str) -> _Refusal | None:
        if not self.principal.capabilities & Capability.SUBSCRIBE:
            return "forbidden"
        refusal = reading_refusal(name, self.principal.device_id)
        if refusal is not None:
            return refusal
        if name in self._subscriptions:
            return None
        followed, streams_max = len(self._subscriptions), self._limits.subscriptions_max
        if followed >= streams_max or (name not in self._left and followed + len(self._left) >= 2 * streams_max):
            return "limit_exceeded"
        return None

    def unsubscribe(self, names: Sequence[str]) -> None:
        """Stop following streams; under ``all``, until it is asked for again."""
        for name in names:
            if self._all and name in self._subscriptions:
                self._left[name] = None
            self._remove(name)
        self._wake()  # others may have waited for the credit that is free now

    def _remove(self, name: str) -> None:
        subscription = self._subscriptions.pop(name, None)
        if subscription is not None:
            self._ready.pop(name, None)
            self._sought.pop(name, None)
            self._credit.forget(subscription)
            if subscription.stream_pk is not None:
                del self._by_pk[subscription.stream_pk]

    def acknowledge(self, positions: Mapping[str, tuple[int, bytes]]) -> None:
        """The device holds everything up to these positions.

        Raises:
            ProtocolError: ``malformed``: above what was sent; ``unknown_position``: another chain than was sent.
        """
        for name, (seq, chain16) in positions.items():
            self._credit.acknowledge(name, self._subscriptions.get(name), seq, chain16)
        if self._ready:  # which may have waited for credit
            self._wake()

    @property
    def unsaved_acks(self) -> dict[str, tuple[int, bytes]]:
        """Acknowledged positions that are not saved yet: a copy; none where they are in a log that was."""
        return self._credit.unsaved if self._log.generation() == self.generation else {}

    def acks_saved(self, acks: Mapping[str, tuple[int, bytes]]) -> None:
        """These are saved now."""
        self._credit.saved(acks)

    # -- hints --------------------------------------------------------------------------------------------------

    def committed(self, addition: Addition) -> None:
        """A commit added events to a stream of this user.

        They are the next page at once where nothing else comes first. The usual case: the session has everything before
        them, and gets what all other followers get.
        """
        subscription = self._by_pk.get(addition.stream_pk)
        if subscription is None:
            self._committed_elsewhere(addition)
            return
        at = subscription.at
        if addition.last_seq <= at.seq:
            return
        if (
            self._ready
            or at.seq != addition.after
            or at.chain != addition.prev_chain
            or subscription.owes_caught_up
            or self._asks_database  # which may read beyond it
            or self.ahead_bytes >= AHEAD_BYTES_MAX
            or self._credit.left_bytes <= 0
            or self._holds()
            or (message := addition.message or addition.encode(self._log, self._clock, self._limits)) is None
        ):
            subscription.heard_seq = max(subscription.heard_seq, addition.last_seq)
            self._ready[subscription.name] = None
            self._call()
        else:
            self.ahead.append(message)
            self.ahead_bytes += addition.size
            self._credit.send(subscription, addition.at, addition.size)
            self._relayed.total += addition.count
            self._wake()

    def _call(self) -> None:
        """There may be something to pull."""
        self.is_marked = True
        self._wake()

    def _committed_elsewhere(self, addition: Addition) -> None:
        """A commit to a stream that the session does not follow, or that was not there when it was subscribed to."""
        if self._meanwhile is not None:
            self._meanwhile[addition.stream_pk] = max(self._meanwhile.get(addition.stream_pk, 0), addition.last_seq)
        if addition.after == 0 and (addition.name in self._subscriptions or self._takes(addition.name)):
            self._begun[addition.name] = None
            self._call()

    def reread(self, streams: Sequence[StreamInfo]) -> None:
        """All streams of this user as the database has them: finds what a lost hint would have told."""
        for info in streams:
            subscription = self._subscriptions.get(info.name)
            if subscription is None:
                self._list_due = self._list_due or self._takes(info.name)
            elif subscription.start is not None:
                self._sought[info.name] = None
            elif info.head.seq > subscription.at.seq:
                subscription.heard_seq = max(subscription.heard_seq, info.head.seq)
                self._appeared(subscription, info)
        if self._ready or self._seeks:
            self._call()

    def _takes(self, name: str) -> bool:
        """Whether ``all`` follows a stream: not what the device left, and no other device's inbox."""
        return self._all and name not in self._left and reading_refusal(name, self.principal.device_id) is None

    @property
    def needs_heads(self) -> bool:
        """Whether ``head_tick`` would have something to do."""
        return self._is_safer or any(each.moved for each in self._subscriptions.values())

    @property
    def _is_safer(self) -> bool:
        return self._signer.safe_at_ms != self._told_safe_at_ms and DEVICES_STREAM in self._subscriptions

    def head_tick(self, streams: Iterable[StreamInfo]) -> None:
        """A signed head is due on every stream that moved since the last one, and where a backup was verified since.

        Where the session has all of a stream it goes at once, up to ``HEADS_AHEAD_MAX``; else in one of its turns.

        Args:
            streams: all streams of this user, as the database has them now: another node may have moved one.
        """
        is_safer = self._is_safer
        signed = 0
        for info in streams:
            subscription = self._subscriptions.get(info.name)
            tells = is_safer and info.name == DEVICES_STREAM
            if subscription is None or subscription.start is not None or not (subscription.moved or tells):
                continue
            subscription.head_due = True
            at = subscription.at
            has_all = at == info.head or at.seq > info.head.seq  # which this node has committed since
            if has_all and signed < HEADS_AHEAD_MAX and self._may_go_ahead(subscription):
                signed += 1
                (message,) = self._continued(subscription, nothing_after(at))
                self.ahead.append(message)
                self.ahead_bytes += len(message)
                self._wake()
            else:
                self._mark(info.name)
        if self._ready:
            self._call()

    def _may_go_ahead(self, subscription: Subscription) -> bool:
        """Whether nothing comes first that is still to be read, and there is room."""
        return not (
            subscription.name in self._ready
            or subscription.owes_caught_up
            or self._asks_database  # which may read beyond the position
            or self.ahead_bytes >= AHEAD_BYTES_MAX
            or self._holds()
        )

    def follows(self, name: str) -> bool:
        """Whether the session is subscribed to the stream."""
        return name in self._subscriptions

    def _mark(self, name: str) -> None:
        self._ready[name] = None

    # -- what to send -------------------------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether ``pull`` may have something."""
        return bool(self.ahead or self._ready or self.refusals or self._seeks)

    @property
    def _seeks(self) -> bool:
        return bool(self._list_due or self._sought or self._begun)

    def pull_nowait(self) -> list[bytes] | None:
        """What ``pull`` would return, as far as memory has it; ``None`` where ``pull`` would ask the database.

        Then ``pull`` is what comes next.
        """
        if self.ahead:
            return self._take_ahead()
        if self.refusals or self._seeks:
            self._asks_database = True
            return None
        if not self._ready:
            return []
        while (name := self._next()) is not None:
            subscription = self._subscriptions[name]
            page = self._pages.in_memory(subscription)
            if page is None:
                self._mark(name)
                self._ready.move_to_end(name, last=False)
                self._asks_database = True
                return None
            messages = self._continued(subscription, page)
            if messages:
                return messages
        return []

    async def pull(self) -> list[bytes]:
        """The next messages for this session, encoded; empty when there is nothing to send now.

        Moves the position over what it returns. Cancel-safe in that a cancelled session has no further use for it.

        Raises:
            Unavailable: the log cannot be read now; what was ready stays ready.
        """
        if self.ahead:
            return self._take_ahead()
        self._asks_database = True
        try:
            return await self._pull()
        finally:
            self._asks_database = False

    def _take_ahead(self) -> list[bytes]:
        ahead, self.ahead, self.ahead_bytes = self.ahead, [], 0
        return ahead

    async def _pull(self) -> list[bytes]:
        while True:
            if self.refusals:
                refused = [await self._refused(*each) for each in self.refusals.copy()]
                del self.refusals[: len(refused)]
                return refused
            while self._seeks:
                if answers := await self._seek():
                    return answers
            name = self._next()
            if name is None:
                return []
            subscription = self._subscriptions[name]
            try:
                messages = await self._page(subscription)
            except ArchiveUnavailable:
                continue  # the next rereading asks again; the other streams go on meanwhile
            except Unavailable:
                if self._subscriptions.get(name) is subscription:  # else it was left meanwhile
                    self._mark(name)
                raise
            except ProtocolError as error:
                if error.code not in ("unknown_position", "unknown_stream"):
                    raise
                self._lost(subscription, error)
                continue
            if messages:
                return messages

    def _next(self) -> str | None:
        """Take the next ready stream: reserved ones first, the others in turn."""
        if self._credit.left_bytes <= 0:
            return None
        for name in RESERVED_STREAMS:
            if name in self._ready:
                del self._ready[name]
                return name
        return self._ready.popitem(last=False)[0] if self._ready else None

    async def _seek(self) -> list[bytes]:
        """Find the streams that the device wants to go on with, in one question, and answer where each goes on from.

        With them those that came into being, and under ``all`` those that it does not follow yet. Resumes go even above
        the credit.
        """
        self._listing, self._list_due = self._list_due, False  # a commit from here on makes it due again
        sought = self._take_sought()
        begun = self._take_begun()
        answers: list[bytes] = []
        self._meanwhile = {}
        try:
            starts: dict[str, int | None] = dict.fromkeys(begun)
            starts |= {name: seq_of(each.start) for name, each in sought.items()}
            known = self._subscriptions.keys() | self._left if self._listing else ()
            answered = await self._log.follow(self.principal, starts, every=self._listing, known=known)
            found = {each.info.name: each for each in answered}
            new = answered if self._listing else [found[name] for name in begun if name in found]
            self._listing, begun = False, []
            for name in self._list(new)[:RESUMED_TOGETHER_MAX]:
                del self._sought[name]
                sought[name] = self._subscriptions[name]
            for name in tuple(sought):
                answers += await self._resume(sought[name], found.get(name))
                del sought[name]
        except Unavailable:
            self._list_due = self._list_due or self._listing
            self._sought |= {name: None for name, each in sought.items() if self._subscriptions.get(name) is each}
            self._begun |= dict.fromkeys(begun)
            if not answers:
                raise
        finally:
            self._meanwhile = None
        return answers

    def _take_begun(self) -> list[str]:
        """Streams that came into being, as many as are looked up at once: all of them where all streams are listed."""
        begun = [*islice(self._begun, None if self._listing else RESUMED_TOGETHER_MAX)]
        for name in begun:
            del self._begun[name]
        return begun

    def _take_sought(self) -> dict[str, Subscription]:
        """The streams that are sought next: reserved ones first, at most ``RESUMED_TOGETHER_MAX``."""
        reserved = [name for name in RESERVED_STREAMS if name in self._sought]
        names = reserved + [name for name in islice(self._sought, RESUMED_TOGETHER_MAX) if name not in reserved]
        for name in names:
            del self._sought[name]
        return {name: self._subscriptions[name] for name in names}

    def _list(self, found: Iterable[Followed]) -> list[str]:
        """Streams that came into being; under ``all`` others are followed from the acknowledged position: which."""
        added: list[str] = []
        for each in found:
            info = each.info
            subscription = self._subscriptions.get(info.name)
            if subscription is not None:
                if subscription.start is None and subscription.stream_pk is None:
                    self._appeared(subscription, info)
            elif self._takes(info.name):
                if each.acked_seq > info.head.seq:
                    self.refusals.append((info.name, "unknown_position"))
                elif self._add(info.name, each.acked_seq):
                    added.append(info.name)
                    continue
                self._left[info.name] = None
        return added

    async def _resume(self, subscription: Subscription, found: Followed | None) -> list[bytes]:
        """Answer where a stream goes on from, and what is there already; nothing where it was left meanwhile."""
        name = subscription.name
        try:
            at = await position_of(self._log, self.principal, name, subscription.start, found)
            rewinds = await self._rewinds_of(self.principal.user_pk, self.principal.user_key, name)
        except ArchiveUnavailable:
            return []  # the next rereading asks again; the other streams go on meanwhile
        except ProtocolError as error:
            if error.code not in ("unknown_position", "unknown_stream"):
                raise
            self._lost(subscription, error)
            return []
        if self._subscriptions.get(name) is not subscription:
            return []  # asked for anew, or not any more, meanwhile
        author = _NO_AUTHOR if found is None else found.author
        head = None if found is None else self._sign(name, found.info.head)
        if at is None:
            self._remove(name)
            if rewinds:
                return [encode(Rewound(name, rewinds, head, author))]
            return [encode(Resumed(name, "unknown_position", head, author, rewinds))]
        subscription.start = None
        self._sought.pop(name, None)  # a rereading may have found it waiting
        subscription.at = at
        subscription.acked_seq = at.seq
        answer = encode(Resumed(name, "contiguous", head, author, rewinds))
        return [answer] if found is None else [answer, *self._begin(subscription, found.info)]

    def _begin(self, subscription: Subscription, info: StreamInfo) -> list[bytes]:
        """Follow a stream that is there; that the device has all of it is known without asking again."""
        at, head_seq = subscription.at, info.head.seq
        self._appeared(subscription, info)
        assert self._meanwhile is not None
        if at.seq < max(head_seq, self._meanwhile.get(info.stream_pk, 0)):
            return []
        del self._ready[subscription.name]
        return self._continued(subscription, nothing_after(at))

    def _appeared(self, subscription: Subscription, info: StreamInfo) -> None:
        """A followed stream is there, perhaps only now."""
        if subscription.stream_pk is None:
            subscription.stream_pk = info.stream_pk
            self._by_pk[info.stream_pk] = subscription
        self._mark(info.name)

    async def _page(self, subscription: Subscription) -> list[bytes]:
        """The page after a stream's position, and the signed head where that reaches it."""
        name = subscription.name
        try:
            page = await self._pages.read(subscription)
        except Pruned:
            return await self._pruned(subscription)
        return self._continued(subscription, page) if self._subscriptions.get(name) is subscription else []

    def _continued(self, subscription: Subscription, page: Page) -> list[bytes]:
        """A page that continues a stream's position as messages, with the signed head where it reaches that."""
        name = subscription.name
        messages: list[bytes] = []
        if page.count:
            messages.append(encode_events(name, page))
            self._relayed.total += page.count
            self._credit.send(subscription, Position(page.last_seq, page.chain), len(page.rows))
        if page.last_seq < page.head_seq:
            subscription.owes_caught_up = True
            self._mark(name)
            return messages
        if subscription.heard_seq <= page.last_seq:
            # A commit that was told while the page was read, and is in it, must not have the database asked again.
            self._ready.pop(name, None)
        if subscription.owes_caught_up:
            messages.append(encode(CaughtUp(name, self._sign(name, subscription.at), self._tell_safe_at_ms())))
        elif subscription.head_due:
            messages.append(encode(Head(name, self._sign(name, subscription.at), self._tell_safe_at_ms())))
        else:
            return messages
        subscription.owes_caught_up = subscription.head_due = subscription.moved = False
        return messages

    def _tell_safe_at_ms(self) -> int | None:
        self._told_safe_at_ms = self._signer.safe_at_ms
        return self._told_safe_at_ms

    async def _pruned(self, subscription: Subscription) -> list[bytes]:
        """The beginning of a stream is gone beyond its position: what stands for it, and the position after that.

        protocol.md section 3, Pruning. It counts as nothing to be acknowledged: there is nothing to send again.
        """
        name = subscription.name
        prefix = await self._log.pruned(self.principal.user_pk, name)
        if prefix is None or self._subscriptions.get(name) is not subscription:
            return []
        message = tell_pruned(name, subscription.at.seq, prefix, self._sign(name, prefix.to))
        subscription.at = prefix.to
        subscription.owes_caught_up = subscription.moved = True
        self._mark(name)
        return [message]

    def _lost(self, subscription: Subscription, error: ProtocolError) -> None:
        """The log no longer holds a followed stream's position: say so instead of guessing."""
        if self._subscriptions.get(subscription.name) is subscription:
            self._remove(subscription.name)
            self._left[subscription.name] = None
            answer: _Refusal = "unknown_stream" if error.code == "unknown_stream" else "unknown_position"
            self.refusals.append((subscription.name, answer))

    def _sign(self, name: str, head: Position) -> SignedHead:
        return self._signer.sign(self.principal.user_key, name, seq=head.seq, chain=head.chain, epoch=self._epoch)
