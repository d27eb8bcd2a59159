"""Signs of life on a link: the newest of each, in frames of a bounded size, dropped where there is no room."""

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest

from federation import passing, wire
from federation.errors import ProtocolError
from federation.link import Passed, Settings
from federation.memory import pair
from federation.passing import EVERY_S, Passing
from tests.federation.test_link import Two
from tests.sim.loop import jump, run


def sign(number: int = 0, kind: Any = "typing", sender: str = "alice") -> wire.Ephemeral:
    return wire.Ephemeral(number.to_bytes(32, "big"), sender, kind, 6000)


def frames_of(*steps: list[wire.Ephemeral]) -> tuple[list[tuple[float, list[wire.Ephemeral]]], Counter[str]]:
    """What leaves, and when, where each step is put in a hundredth of a second after the one before."""
    refused: Counter[str] = Counter()
    came: list[tuple[float, list[wire.Ephemeral]]] = []

    async def work() -> None:
        ours, theirs = pair()
        waiting = Passing(ours, refused)
        sending = asyncio.ensure_future(waiting.run())

        async def read() -> None:
            while raws := await theirs.recv():
                for frame in map(wire.decode, raws):
                    assert isinstance(frame, wire.Ephemerals)
                    came.append((asyncio.get_running_loop().time(), list(frame.signs)))

        reading = asyncio.ensure_future(read())
        for step in steps:
            for one in step:
                waiting.put(one)
            await jump(0.01)
        await jump(60)
        assert len(waiting) == 0
        for task in (sending, reading):
            task.cancel()
        await asyncio.gather(sending, reading, return_exceptions=True)

    run(work())
    return came, refused


def test_the_newest_replaces_what_did_not_leave_yet() -> None:
    came, refused = frames_of(
        [sign(1)], [sign(1, "idle"), sign(1, "online"), sign(2, "idle")], [sign(1, "typing"), sign(2, sender="bob")],
        [sign(1, "away")],
    )  # fmt: skip
    assert [signs for _, signs in came] == [
        [sign(1)], [sign(1, "typing"), sign(1, "away"), sign(2, "idle"), sign(2, sender="bob")],
    ]  # fmt: skip
    assert came[0][0] == 0, "the first waits for nobody"
    assert came[1][0] == pytest.approx(EVERY_S)
    assert not refused


def test_many_leave_in_whole_frames_and_too_many_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "WAITING_MAX", 600)
    came, refused = frames_of([sign(n) for n in range(1000)] + [sign(1, "idle")])
    assert [len(signs) for _, signs in came] == [256, 256, 88]
    assert came[0][1][1] == sign(1, "idle"), "what has a place keeps it"
    assert refused == {"signs of life": 400}


def test_nothing_is_said_in_passing_before_both_sides_accept() -> None:
    two = Two(standings=("accepted", "pending"), settings=Settings()).greet()
    with pytest.raises(ProtocolError) as refused:
        two.b.feed(wire.Ephemerals((sign(),)), two.now)
    assert (refused.value.code, refused.value.rule) == ("not_accepted", "3.4")
    two = Two().greet()
    assert two.b.feed(wire.Ephemerals((sign(),)), two.now) == [Passed((sign(),))]


@pytest.mark.parametrize(
    "signs", [[], [sign()] * 257, [[b"x", "a", "typing", 1]], [[bytes(32), "a", "dancing", 1]],
              [[bytes(32), "a" * 65, "idle", 0]], [[bytes(32), "a", "idle", 3_600_001]], [[bytes(32), "a", "idle", -1]],
              [[bytes(32), "a", "idle", 0, 0]]],
)  # fmt: skip
def test_what_is_no_sign_of_life_is_refused(signs: Any) -> None:
    with pytest.raises(ProtocolError) as refused:
        wire.decode(msgspec.msgpack.encode({"t": "ephemerals", "signs": signs}))
    assert refused.value.code == "bad_frame"
