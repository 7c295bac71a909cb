"""The mailbox: order, coalescing, the end, and slow readers, against a plain list as the reference model."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_server.errors import Cancelled
from darkroom_server.jobs.events import Accepted, ControlMade, Ended, Event, ImageDecoded, PreviewMade, Queued, StepDone
from darkroom_server.jobs.mailbox import Mailbox
from darkroom_server.models.residency import Loading

PICTURE: Any = SimpleNamespace(nbytes=12)  # of which a mailbox wants no more
IMAGES = st.integers(0, 2)
NUMBERS = st.integers(0, 99)


def step(image: int, number: int) -> StepDone:
    return StepDone(image, number, 99, 0.0, None, 0.0, 0.0, 1)


def preview(image: int, number: int) -> PreviewMade:
    return PreviewMade(image, number, PICTURE, "latent-rgb")


def loading(done: int, component: str = "unet") -> Loading:
    return Loading("sd", component, "read", done, 99)


COALESCED: st.SearchStrategy[Event] = st.one_of(
    st.builds(preview, IMAGES, NUMBERS),
    st.builds(Queued, NUMBERS, st.none()),
    st.builds(loading, NUMBERS, st.sampled_from(["unet", "vae"])),
)
KEPT: st.SearchStrategy[Event] = st.one_of(
    st.builds(Accepted),
    st.builds(step, IMAGES, NUMBERS),
    st.builds(ControlMade, NUMBERS, st.just(PICTURE), st.just("canny")),
    st.builds(ImageDecoded, IMAGES, st.just(PICTURE)),
)
EVENTS = COALESCED | KEPT
Action: TypeAlias = Event | Literal["read", "close"]
ACTIONS = st.lists(st.one_of(COALESCED, KEPT, *[st.just("read")] * 2, st.builds(Ended), st.just("close")), max_size=40)


def slot(event: Event) -> tuple[Any, ...] | None:
    """What an event is the newest of; None: every one counts."""
    if isinstance(event, PreviewMade):
        return (PreviewMade, event.image_index)
    return (type(event),) if isinstance(event, Queued | Loading) else None


class Reference:
    """The mailbox as a list: the newest of a slot is at its own place, and the one before it is gone."""

    def __init__(self) -> None:
        self.waiting: list[Event] = []
        self.ended = False

    def put(self, event: Event) -> None:
        if not self.ended:
            self.waiting = [each for each in self.waiting if slot(event) is None or slot(each) != slot(event)]
            self.waiting.append(event)
            self.ended = isinstance(event, Ended)


class Reader:
    """Reads a mailbox, one event at a time, without waiting for one."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._reading: asyncio.Task[tuple[int, Event]] | None = None

    async def read(self) -> Event | None:
        """The next event; None where none waits. The mailbox is then still being read, until one comes."""
        self._reading = self._reading or asyncio.ensure_future(self._mailbox.get())
        for _ in range(4):  # turns of the event loop, enough for whoever can go on
            await asyncio.sleep(0)
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        return reading.result()[1]

    async def rest(self) -> list[Event]:
        """All that waits."""
        found = []
        while (event := await self.read()) is not None:
            found.append(event)
        return found

    async def stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


def read(events: Sequence[Event | Literal["read"]]) -> list[Event]:
    """What a reader gets who reads where it says so, and at the end all that is left."""

    async def reads() -> list[Event]:
        mailbox, found = Mailbox(), []
        reader = Reader(mailbox)
        for event in events:
            if event != "read":
                mailbox.put(event)
            elif (got := await reader.read()) is not None:
                found.append(got)
        found += await reader.rest()
        await reader.stop()
        return found

    return asyncio.run(reads())


@given(ACTIONS)
def test_does_what_the_reference_does(actions: list[Action]) -> None:
    async def compare() -> None:
        mailbox, reference = Mailbox(), Reference()
        reader = Reader(mailbox)

        async def read_both() -> None:
            expected = reference.waiting.pop(0) if reference.waiting else None
            assert await reader.read() is expected

        for action in actions:
            if action == "read":
                await read_both()
            elif action == "close":
                error = Cancelled()
                assert mailbox.close(error) is not reference.ended
                if not reference.ended:
                    assert reader_gets(await reader.read()) is error
                    reference.waiting, reference.ended = [], True
            else:
                mailbox.put(action)
                reference.put(action)
        while reference.waiting:
            await read_both()
        await read_both()
        await reader.stop()

    asyncio.run(compare())


def reader_gets(event: Event | None) -> Exception | None:
    """The error that a job ended with."""
    assert isinstance(event, Ended)
    return event.error


@given(st.lists(EVENTS | st.just("read"), max_size=40))
def test_only_what_is_coalesced_is_lost(events: list[Any]) -> None:
    put = [event for event in events if event != "read"]
    got = read([*events, end := Ended()])
    assert [event for event in got if slot(event) is None] == [*(event for event in put if slot(event) is None), end]
    for each in {slot(event) for event in put} - {None}:
        values, seen = ([event for event in some if slot(event) == each] for some in (put, got))
        assert seen[-1] is values[-1]
        following = iter(values)
        assert all(event in following for event in seen)  # in this order


def test_what_was_left_out_is_missing_in_the_numbers() -> None:
    async def numbers() -> list[int]:
        mailbox = Mailbox()
        for event in (step(0, 1), preview(0, 1), step(0, 2), preview(0, 2), step(0, 3), Ended()):
            mailbox.put(event)
        return [(await mailbox.get())[0] for _ in range(5)]

    assert asyncio.run(numbers()) == [1, 3, 4, 5, 6]


def test_the_bytes_of_unread_pictures_are_counted() -> None:
    async def count() -> None:
        counted: list[int] = []
        mailbox = Mailbox(on_picture=lambda: counted.append(mailbox.unread_bytes))
        for index in range(2):
            mailbox.put(ImageDecoded(index, PICTURE))
            mailbox.put(preview(index, 1))
        assert counted == [PICTURE.nbytes, 2 * PICTURE.nbytes]
        await mailbox.get()
        assert mailbox.unread_bytes == PICTURE.nbytes
        mailbox.close(Cancelled())
        assert mailbox.unread_bytes == 0

    asyncio.run(count())


@given(st.lists(EVENTS, max_size=40))
def test_whoever_reads_at_once_gets_everything(events: list[Event]) -> None:
    assert read([each for event in events for each in (event, "read")]) == events


@given(st.lists(COALESCED, min_size=1, max_size=40))
def test_a_slow_reader_has_one_event_a_slot_to_read(events: list[Event]) -> None:
    newest = {slot(event): event for event in events}
    assert sorted(map(repr, read(events))) == sorted(map(repr, newest.values()))


@given(st.lists(st.sampled_from([0, 1, "read"]), max_size=40))
def test_previews_come_between_their_step_and_their_image(turns: list[Any]) -> None:
    """As a job puts its events: for each image its steps with their previews, then the image."""
    left = {image: [each(image, n) for n in range(1, 5) for each in (step, preview)] for image in range(2)}
    for image, events in left.items():
        events.append(ImageDecoded(image, PICTURE))
    turned = [left[turn].pop(0) if left.get(turn) else "read" for turn in turns]
    got = read([*turned, *left[0], *left[1]])
    for at, event in enumerate(got):
        if isinstance(event, PreviewMade):
            assert step(event.image_index, event.step) in got[:at]
            assert ImageDecoded(event.image_index, PICTURE) in got[at:]
    assert sum(isinstance(event, StepDone | ImageDecoded) for event in got) == 10


@given(st.lists(EVENTS, max_size=5), st.lists(EVENTS | st.builds(Ended), max_size=5))
def test_nothing_comes_after_the_end(before: list[Event], after: list[Event]) -> None:
    assert read([*before, Ended(), *after]) == read([*before, Ended()])


# ------------------------------------------------------------------------------------------------------------- close


@pytest.mark.parametrize(
    "event", [step(0, 1), preview(0, 1), Queued(3, None), loading(1)], ids=lambda e: type(e).__name__
)
def test_closing_drops_what_waits(event: Event) -> None:
    async def close() -> None:
        mailbox, error = Mailbox(), Cancelled()
        mailbox.put(event)
        assert mailbox.close(error)
        mailbox.put(event)
        assert reader_gets((await mailbox.get())[1]) is error
        assert await Reader(mailbox).rest() == []

    asyncio.run(close())


def test_what_has_ended_stays_as_it_is() -> None:
    async def close() -> None:
        mailbox = Mailbox()
        mailbox.put(step(0, 1))
        mailbox.put(Ended())
        assert not mailbox.close(Cancelled())
        assert [await mailbox.get() for _ in range(2)] == [(1, step(0, 1)), (2, Ended())]
        assert not mailbox.close(Cancelled())

    asyncio.run(close())


def test_closing_wakes_whoever_reads() -> None:
    async def close() -> None:
        mailbox, error = Mailbox(), Cancelled()
        reader = Reader(mailbox)
        assert await reader.read() is None
        assert mailbox.close(error)
        assert reader_gets(await reader.read()) is error

    asyncio.run(close())


def test_what_comes_before_the_end_is_known() -> None:
    mailbox = Mailbox()
    for event in (step(0, 1), preview(0, 1), Ended()):
        assert not mailbox.at_end
        mailbox.put(event)
    for _ in range(2):
        assert not mailbox.at_end
        asyncio.run(mailbox.get())
    assert mailbox.at_end
