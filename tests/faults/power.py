"""C4: the power goes at every point where something was said or synced.

A node runs under a tracer that records what it writes to its database files, what it syncs, and what it tells its
clients. Replayed up to any point, everything synced is on the disk; what was written after the last sync may be
there, or not, in any order, and in pieces of 512 bytes. Whatever a client had been told by then must be in the store.
"""

import random
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from federation.ids import from_text
from tests.faults.person import Wrong
from tests.faults.town import STRACE, Town

SECTOR_BYTES = 512
CALLS = "pwrite64,ftruncate,fdatasync,fsync,sendto"
# PID CALL(FD<PATH>, "DATA"..., SIZE, OFFSET) = RESULT, perhaps in two lines when threads take turns
LINE = re.compile(r"(\d+) (?:<\.\.\. )?(\w+)(?:\((\d+)<(.*?)>(.*)| resumed>(.*))")
TOLD = re.compile(rb"event\xd9\x34([a-z2-7]{52})")  # an event's id in MessagePack


class Write(NamedTuple):
    path: str
    offset: int
    data: bytes | None  # None: the file ends at `offset`


class Synced(NamedTuple):
    path: str


class Told(NamedTuple):
    events: tuple[str, ...]


Step = Write | Synced | Told


def steps(trace: Path) -> Iterator[Step]:
    """What happened, in order."""
    open_calls: dict[str, str] = {}  # by thread: the file whose sync has begun
    for line in trace.read_text().splitlines():
        found = LINE.match(line)
        if not found:
            continue
        pid, call, _, hexed, rest, _ = found.groups()
        path = _text(hexed or "").decode()
        if call in ("fdatasync", "fsync"):
            if hexed is None:
                yield Synced(open_calls.pop(pid))
            elif "unfinished" in line:
                open_calls[pid] = path
            else:
                yield Synced(path)
        elif hexed is None or ("roost.db" not in path and call != "sendto"):
            continue
        elif call == "pwrite64":
            data, numbers = _parts(rest)
            yield Write(path, numbers[1], data)
        elif call == "ftruncate":
            yield Write(path, int(re.findall(r"\d+", rest)[0]), None)
        elif events := TOLD.findall(_parts(rest)[0]):
            yield Told(tuple(event.decode() for event in events))


def _text(hexed: str) -> bytes:
    """strace's \\x2f\\x74... as bytes, or plain as it is."""
    return bytes.fromhex(hexed.replace("\\x", "")) if hexed.startswith("\\x") else hexed.encode()


def _parts(rest: str) -> tuple[bytes, list[int]]:
    start = rest.index('"')
    end = rest.rindex('"')
    return _text(rest[start + 1 : end]), [int(n) for n in re.findall(r"\d+", rest[end:])]


class Disk:
    """Files as they would be found after the power went."""

    def __init__(self, base: Path) -> None:
        self._durable = {path.name: bytearray(path.read_bytes()) for path in base.glob("roost.db*")}
        self._waiting: dict[str, list[Write]] = {}

    def step(self, step: Write | Synced) -> None:
        name = Path(step.path).name
        if isinstance(step, Synced):
            for write in self._waiting.pop(name, []):
                _apply(self._durable.setdefault(name, bytearray()), write)
        else:
            self._waiting.setdefault(name, []).append(step)

    def cut(self, folder: Path, chance: random.Random | None) -> None:
        """Write the files out; without `chance` nothing that was not synced is there."""
        for name in {*self._durable, *self._waiting}:
            if name.endswith("-shm"):
                continue  # memory, not disk
            content = bytearray(self._durable.get(name, b""))
            pieces = [p for w in self._waiting.get(name, []) for p in _torn(w)] if chance else []
            if chance:
                chance.shuffle(pieces)
                pieces = pieces[: chance.randint(0, len(pieces))]
            for piece in pieces:
                _apply(content, piece)
            (folder / name).write_bytes(content)


def _torn(write: Write) -> list[Write]:
    if write.data is None:
        return [write]
    data = write.data
    return [
        Write(write.path, write.offset + at, data[at : at + SECTOR_BYTES]) for at in range(0, len(data), SECTOR_BYTES)
    ]


def _apply(content: bytearray, write: Write) -> None:
    if write.data is None:
        del content[write.offset :]
        return
    content.extend(bytes(max(0, write.offset - len(content))))
    content[write.offset : write.offset + len(write.data)] = write.data


async def c4(town: Town, whole: bool) -> None:
    side = town.nodes["a"]
    alice, bob = await town.person("alice", "a"), await town.person("bob", "a")
    alice.write(bob.address, 1)
    await bob.has([(await _answered(town))[0]])
    await side.stop()
    folder = side.folder.parent
    base, trace = folder / "base", folder / "trace"
    shutil.copytree(side.database.parent, base, ignore=shutil.ignore_patterns("*.sock"))
    record = [*STRACE, "-y", "-xx", "-s", "200000", "-o", str(trace), "-e", f"trace={CALLS}"]
    assert await side.serve(*record), side.said()
    for _ in range(150 if whole else 25):
        alice.write(bob.address, 1)
        await alice.answered()
    await side.stop(signal.SIGKILL)
    town.rounds = _replay(base, trace, folder, 4 if whole else 1)
    assert await side.serve(), side.said()


async def _answered(town: Town) -> list[str]:
    await town.people["alice"].answered()
    return [a.event for a in town.people["alice"].attempts]


def _replay(base: Path, trace: Path, folder: Path, variants: int) -> int:
    """Cut the power after each step that matters; the number of cuts."""
    disk, told, cuts = Disk(base), set[str](), 0
    chance = random.Random(4)
    for step in steps(trace):
        if isinstance(step, Told):
            new = set(step.events) - told
            told |= new
            if not new:
                continue
        else:
            disk.step(step)
            if isinstance(step, Write):
                continue
        for variant in range(1 + variants):
            after = folder / "after"
            shutil.rmtree(after, ignore_errors=True)
            after.mkdir()
            disk.cut(after, chance if variant else None)
            _judge(after, told)
            cuts += 1
    assert told, "nothing was recorded"
    return cuts


def _judge(after: Path, told: set[str]) -> None:
    db = sqlite3.connect(after / "roost.db")
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        stored = {event for (event,) in db.execute("SELECT event FROM events JOIN items USING (log, seq)")}
    finally:
        db.close()
    lost = [event for event in told if from_text(event, 32) not in stored]
    if lost:
        raise Wrong(f"{len(lost)} of {len(told)} messages that a client had been told of are gone with the power")
