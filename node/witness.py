"""The witness: a small file beside the store that tells an old copy of the store from the newest one.

It holds the number and incarnation of the last start and the newest stamp that was committed. It is written at every
start, and later at most every WITNESS_S seconds, always after the commit it speaks of: so it may lag behind the store
and is never ahead of it. A copy that is older than that lag is noticed at start; one that is not was made in the last
seconds before a crash, and whatever a peer got in these is noticed by that peer (PROTOCOL.md 10.1).
"""

import os
from pathlib import Path

import msgspec

from federation.ids import from_text, to_text

FILE = "witness.json"
WITNESS_S = 5.0
BYTES_MAX = 64 << 10


class Witness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says."""

    node: str
    life: int  # number of the last start
    incarnation: str
    stamp: int  # newest in the store
    path: str  # of the folder: a copy of it finds the original there


def read(folder: Path) -> Witness | None:
    """What was seen last; `None` for no file, or one that says nothing any more."""
    try:
        with (folder / FILE).open("rb") as file:
            return msgspec.json.decode(file.read(BYTES_MAX), type=Witness)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write(folder: Path, witness: Witness) -> None:
    """Whole or not at all. Raises `OSError`."""
    draft = folder / f".{FILE}.new"
    put(draft, msgspec.json.encode(witness))
    draft.rename(folder / FILE)
    sync_folder(folder)


def put(file: Path, content: bytes) -> None:
    """A private file, on the disk when this returns."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Make names in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copied_from(folder: Path, witness: Witness | None) -> str:
    """Where the original is, if this folder is a copy of one that is still there; else nothing. A moved folder is
    none."""
    if witness is None or Path(witness.path) == folder.resolve():
        return ""
    there = read(Path(witness.path))
    return witness.path if there is not None and there.node == witness.node else ""


def judge(witness: Witness | None, life: int, incarnation: bytes, stamp: int) -> str:
    """Why a store is an old copy, given its last start and newest stamp; nothing when it is not."""
    if witness is None:
        return "the witness file is missing: only a whole data directory is known to be the newest" if life else ""
    if witness.life > life:
        return f"the witness file knows of start {witness.life}, the store only of {life}: it is an old copy"
    if witness.life < life:
        return ""  # the process died between the two
    if from_text(witness.incarnation, len(incarnation)) != incarnation:
        return f"the witness file and the store know another start {life}: one of them is a copy"
    if witness.stamp > stamp:
        return "the witness file has seen newer messages than the store has: it is an old copy"
    return ""


def seen(node: bytes, life: int, incarnation: bytes, stamp: int, folder: Path) -> Witness:
    return Witness(to_text(node), life, to_text(incarnation), stamp, str(folder.resolve()))
