"""Every fault the checker knows, planted into an otherwise right run (``tests.support.observed_run``).

Each function changes one thing and leaves all else consistent with it, so that exactly its fault is there to be found.
They need two users, two devices a user, and one event more than devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec

from bench.checker import Fault
from bench.observations import Accepted, Duplicate, Refused
from tests.support.observed_run import STREAM, Entry, ObservedRun, Page, Reader, User, chains

Plant = Callable[[ObservedRun], None]

PLANTED: Final[list[tuple[Plant, Fault]]] = []
"""Every plant with the one fault that it is."""


def _plants(fault: Fault) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        PLANTED.append((plant, fault))
        return plant

    return register


def _insert(run: ObservedRun, user: User, entry: Entry) -> None:
    """Put a foreign entry anywhere into the log."""
    place = run.random.randrange(len(user.log) + 1)
    received_at_ms = user.log[max(place - 1, 0)].received_at_ms
    user.log.insert(place, replace(entry, received_at_ms=received_at_ms))
    run.renumber(user)


def _append(run: ObservedRun, user: User, author: bytes, value: bytes) -> None:
    """Put an entry at the log's end under an author's next number, which was not published."""
    n = len(user.published[author]) + 1
    user.log.append(Entry(0, author, n, user.log[-1].received_at_ms, value))
    run.renumber(user)


@_plants(Fault.LOSS)
def everybody_misses_the_end(run: ObservedRun) -> None:
    """The server acknowledged, then forgot."""
    user = run.users[0]
    del user.log[-run.random.randint(1, len(user.log)) :]
    run.deliver(user)


@_plants(Fault.LOSS)
def one_reader_misses_the_end(run: ObservedRun) -> None:
    """A subscriber that says it is complete stopped short."""
    del run.random.choice(run.users[0].readers).pages[-1]


@_plants(Fault.LOSS)
def a_late_reader_misses_the_end(run: ObservedRun) -> None:
    """It never read the beginning, and is the only one that says it is complete."""
    user = run.users[0]
    after = run.random.randrange(1, len(user.log) - 1)
    known = chains(user.key, user.log)
    page = Page(tuple(user.log[after:-1]), known[-2])
    user.readers = [Reader(user.devices[0], after, known[after - 1], [page])]
    user.answers = user.answers[after:]


@_plants(Fault.LOSS)
def an_event_that_was_a_duplicate_is_not_there(run: ObservedRun) -> None:
    """The answer said that it had been stored before, without a place."""
    user = run.users[0]
    lost = user.log.pop()
    user.answers.pop()
    user.extra.append(Duplicate(lost.author, STREAM, lost.n, None, None, None))
    run.deliver(user)


@_plants(Fault.DUPLICATE)
def an_event_is_stored_twice(run: ObservedRun) -> None:
    """A retry was appended once more."""
    user = run.users[0]
    user.log.append(run.random.choice(user.log))
    run.renumber(user)


@_plants(Fault.DUPLICATE)
def a_page_is_delivered_twice(run: ObservedRun) -> None:
    """A session sends what it sent already."""
    pages = run.random.choice(run.users[0].readers).pages
    place = run.random.randrange(len(pages))
    pages.insert(place, pages[place])


@_plants(Fault.REORDERING)
def an_author_has_its_later_event_first(run: ObservedRun) -> None:
    """For everybody, and acknowledged so."""
    user = run.users[0]
    author = next(device for device, hashes in user.published.items() if len(hashes) > 1)
    first, second = (place for place, entry in enumerate(user.log) if entry.author == author and entry.n < 3)
    user.log[first], user.log[second] = user.log[second], user.log[first]
    run.renumber(user)


@_plants(Fault.REORDERING)
def one_reader_is_given_another_order(run: ObservedRun) -> None:
    """Two neighbouring events arrive the other way round on one device."""
    user = run.users[0]
    place = run.random.randrange(len(user.log) - 1)
    swapped = list(user.log)
    swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
    swapped = [replace(entry, seq=seq) for seq, entry in enumerate(swapped, 1)]
    run.random.choice(user.readers).pages = run.pages(user, swapped)


@_plants(Fault.REORDERING)
def an_acknowledgement_names_another_seq(run: ObservedRun) -> None:
    """The ack says one place, the log has the event at another."""
    answers = run.users[0].answers
    place = run.random.randrange(len(answers) - 1)
    answers[place] = msgspec.structs.replace(answers[place], seq=answers[-1].seq, chain=answers[-1].chain)


@_plants(Fault.REORDERING)
def a_repeated_acknowledgement_names_another_seq(run: ObservedRun) -> None:
    """The second answer contradicts the first, which was right."""
    user = run.users[0]
    first, other = user.answers[0], user.answers[-1]
    user.extra.append(Duplicate(first.device, STREAM, first.n, other.seq, other.chain, other.received_at_ms))


@_plants(Fault.GAP)
def one_reader_is_not_given_a_page(run: ObservedRun) -> None:
    """One device misses a page that is not the last."""
    reader = run.random.choice(run.users[0].readers)
    user = run.users[0]
    chain = chains(user.key, user.log)
    place = run.random.randrange(1, len(user.log))
    reader.pages = [
        *([Page(tuple(user.log[: place - 1]), chain[place - 2])] if place > 1 else []),
        Page(tuple(user.log[place:]), chain[-1]),
    ]


@_plants(Fault.GAP)
def the_log_leaves_out_a_seq(run: ObservedRun) -> None:
    """The server counts on without an event."""
    user = run.users[0]
    place = run.random.randrange(1, len(user.log))
    user.log = [replace(entry, seq=entry.seq + (index >= place)) for index, entry in enumerate(user.log)]
    run.answer(user)
    chain = chains(user.key, user.log)
    for reader in user.readers:
        reader.pages = [Page(tuple(user.log[:place]), chain[place - 1]), Page(tuple(user.log[place:]), chain[-1])]


@_plants(Fault.AUTHOR_GAP)
def an_author_number_is_left_out(run: ObservedRun) -> None:
    """An event that was never acknowledged is missing below a later one of its author."""
    user = run.users[0]
    author = run.random.choice(user.devices)
    lost = run.append(user, author)
    run.append(user, author)
    user.log.remove(lost)
    run.renumber(user)


@_plants(Fault.BROKEN_CHAIN)
def a_page_carries_a_wrong_chain(run: ObservedRun) -> None:
    """The chain of a page is not that of its events, which others were told rightly."""
    pages = run.random.choice(run.users[0].readers).pages
    place = run.random.randrange(len(pages))
    pages[place] = replace(pages[place], chain=run.random_bytes(32))


@_plants(Fault.BROKEN_CHAIN)
def everybody_is_given_the_same_wrong_chain(run: ObservedRun) -> None:
    """No two chains contradict each other: only recomputing shows it."""
    user = run.users[0]
    user.answers = []
    page = Page(tuple(user.log), run.random_bytes(32))
    for reader in user.readers:
        reader.pages = [page]


@_plants(Fault.BROKEN_CHAIN)
def an_acknowledgement_carries_a_wrong_chain(run: ObservedRun) -> None:
    """The chain of an ack is not that of the log."""
    answers = run.users[0].answers
    place = run.random.randrange(len(answers))
    answers[place] = msgspec.structs.replace(answers[place], chain=run.random_bytes(32))


@_plants(Fault.BROKEN_CHAIN)
def the_chain_before_the_first_event_is_wrong(run: ObservedRun) -> None:
    """All sessions begin at the same wrong chain."""
    wrong = run.random_bytes(32)
    for reader in run.users[0].readers:
        reader.chain = wrong


@_plants(Fault.BROKEN_CHAIN)
def the_chain_breaks_after_a_late_start(run: ObservedRun) -> None:
    """Only the end was read, from a known chain on."""
    user = run.users[0]
    after = run.random.randrange(1, len(user.log))
    page = Page(tuple(user.log[after:]), run.random_bytes(32))
    user.readers = [Reader(user.devices[0], after, chains(user.key, user.log)[after - 1], [page])]
    user.answers = []


@_plants(Fault.LEAK)
def an_event_of_another_user_is_delivered(run: ObservedRun) -> None:
    """It lies in the log of somebody else, its author's name on it."""
    _insert(run, run.users[0], run.random.choice(run.users[1].log))


@_plants(Fault.LEAK)
def an_event_of_another_user_is_delivered_under_an_own_name(run: ObservedRun) -> None:
    """The log says that the user's own device wrote it."""
    user = run.users[0]
    _append(run, user, run.random.choice(user.devices), run.random.choice(run.users[1].log).hash)


@_plants(Fault.LEAK)
def an_own_event_is_replaced_by_another_users(run: ObservedRun) -> None:
    """The number was published, the bytes are another user's."""
    user = run.users[0]
    place = run.random.randrange(len(user.log))
    user.log[place] = replace(user.log[place], hash=run.random.choice(run.users[1].log).hash)
    run.renumber(user)


@_plants(Fault.LEAK)
def a_device_is_given_another_users_log(run: ObservedRun) -> None:
    """The whole stream, chains and all, goes to a stranger who had nothing of that name yet."""
    user, other = run.users[:2]
    user.published.clear()
    user.answers = []
    user.readers = [Reader(user.devices[0], 0, user.readers[0].chain, run.pages(other, other.log))]


@_plants(Fault.UNPUBLISHED_ACK)
def an_event_that_nobody_published_is_acknowledged(run: ObservedRun) -> None:
    """The number is one above the device's last."""
    user = run.users[0]
    last = user.answers[-1]
    n = len(user.published[last.device]) + 1
    user.extra.append(Accepted(last.device, STREAM, n, 1, last.seq, last.received_at_ms, last.chain))


@_plants(Fault.UNPUBLISHED_ACK)
def an_event_that_nobody_published_is_refused(run: ObservedRun) -> None:
    """The answer is about bytes that were never sent."""
    user = run.users[0]
    user.extra.append(Refused(run.random.choice(user.devices), STREAM, 1, run.random_bytes(32), "malformed"))


@_plants(Fault.PHANTOM)
def a_known_device_has_an_event_that_it_did_not_publish(run: ObservedRun) -> None:
    """Its number is above what the device reached."""
    user = run.users[0]
    _append(run, user, run.random.choice(user.devices), run.random_bytes(32))


@_plants(Fault.PHANTOM)
def an_event_of_an_unknown_device_is_in_the_log(run: ObservedRun) -> None:
    """Nobody in the run has that device id."""
    _insert(run, run.users[0], Entry(0, run.random_bytes(16), 1, 0, run.random_bytes(32)))


@_plants(Fault.CHANGED)
def an_event_is_changed_for_everybody(run: ObservedRun) -> None:
    """The log has other bytes than the author's."""
    user = run.users[0]
    place = run.random.randrange(len(user.log))
    user.log[place] = replace(user.log[place], hash=run.random_bytes(32))
    run.renumber(user)


@_plants(Fault.CHANGED)
def an_event_is_changed_for_one_reader(run: ObservedRun) -> None:
    """One device alone is given other bytes."""
    user = run.users[0]
    place = run.random.randrange(len(user.log))
    changed = list(user.log)
    changed[place] = replace(changed[place], hash=run.random_bytes(32))
    run.random.choice(user.readers).pages = run.pages(user, changed)


@_plants(Fault.REFUSED_STORED)
def a_refused_event_is_in_the_log(run: ObservedRun) -> None:
    """It was refused for good."""
    user = run.users[0]
    entry = run.random.choice(user.log)
    user.extra.append(Refused(entry.author, STREAM, entry.n, entry.hash, "bad_signature"))


@_plants(Fault.UNREAD)
def nobody_read_the_end(run: ObservedRun) -> None:
    """Acknowledged events whose fate no reader knows, for none says it is complete."""
    user = run.users[0]
    user.log.pop()
    run.deliver(user)
    for reader in user.readers:
        reader.complete = False


@_plants(Fault.UNREAD)
def only_a_late_reader_is_complete(run: ObservedRun) -> None:
    """It can say nothing about what was acknowledged before it began."""
    user = run.users[0]
    after = run.random.randrange(1, len(user.log))
    known = chains(user.key, user.log)
    user.readers = [Reader(user.devices[0], after, known[after - 1], [Page(tuple(user.log[after:]), known[-1])])]
