"""A device on this machine: a private folder with its link, token, signing seed and local store."""

import asyncio
import fcntl
import os
import re
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from federation.errors import AddressError
from federation.identity import NodeKey, NodeLink
from federation.ids import Address
from node import api
from node.client.errors import Lost, ProfileError, ProfileInUse, Unreachable
from node.client.session import Session
from node.client.wire import Wire

FILE = "profile.json"
LOCK = "lock"
STORE = "cache.db"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Device(NamedTuple):
    """Who a client is, where no profile folder says so: an embedded one."""

    address: str
    device: str


class Facts(msgspec.Struct, frozen=True):
    """What `profile.json` holds."""

    link: str
    address: str
    device: str
    token: str
    seed: bytes


def home() -> Path:
    """Where profiles live."""
    return Path(os.environ.get("ROOST_HOME") or Path.home() / ".roost")


@dataclass
class Profile:
    """An opened profile; this process alone has it until `release`."""

    name: str
    folder: Path
    facts: Facts
    lock: int

    @property
    def address(self) -> str:
        return self.facts.address

    @property
    def device(self) -> str:
        return self.facts.device

    @property
    def link(self) -> NodeLink:
        return NodeLink.parse(self.facts.link)

    @property
    def store(self) -> Path:
        return self.folder / STORE

    def release(self) -> None:
        lock, self.lock = self.lock, -1
        if lock >= 0:
            os.close(lock)

    def forget(self) -> None:
        """Delete everything; the device is gone from this machine."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def folder(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ProfileError(f"profile name {name[:80]!r} is not allowed: use letters, digits and . _ @ -")
    return home() / "profiles" / name


def open_profile(name: str) -> Profile:
    """`ProfileError` when it does not exist or others could read it, `ProfileInUse` when it is open elsewhere."""
    where = folder(name)
    try:
        for path in (where, where / FILE):
            _check_private(path)
        raw = (where / FILE).read_bytes()
        facts = msgspec.json.decode(raw, type=Facts)
    except (FileNotFoundError, NotADirectoryError):
        raise ProfileError(f"there is no profile {name!r} in {where.parent}; log in first") from None
    except msgspec.MsgspecError as error:
        raise ProfileError(f"{where / FILE} cannot be read: {error}; log in again under another name") from None
    return Profile(name, where, facts, _take(where, name))


def create(name: str) -> tuple[Path, int]:
    """A new private folder, locked; `ProfileError` when the name is taken."""
    where = folder(name)
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    where.mkdir(mode=0o700, exist_ok=True)
    _check_private(where)
    lock = _take(where, name)
    if (where / FILE).exists():
        os.close(lock)
        raise ProfileError(
            f"profile {name!r} exists already: `roost logout --profile {name}` first, or choose another name"
        )
    return where, lock


def save(name: str, where: Path, lock: int, facts: Facts) -> Profile:
    """Write the facts so that a crash leaves all of them or none."""
    temporary = where / f"{FILE}.new"
    handle = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.encode(facts))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(where / FILE)
    directory = os.open(where, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return Profile(name, where, facts, lock)


def abandon(where: Path, lock: int) -> None:
    """A login that failed leaves nothing."""
    shutil.rmtree(where, ignore_errors=True)
    os.close(lock)


def _check_private(path: Path) -> None:
    status = path.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ProfileError(f"{path} can be read by others; it holds a key: run `chmod go= {path}`, then try again")


def _take(where: Path, name: str) -> int:
    lock = os.open(where / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ProfileInUse(f"profile {name!r} is open in another process; stop that one first") from None
    return lock


# --- becoming a device --------------------------------------------------------------------------------------
def parse_invite(text: str) -> tuple[NodeLink, str]:
    """`ROOST-LINK#CODE` in parts; `AddressError` otherwise."""
    link, hash_sign, code = text.strip().partition("#")
    if not hash_sign or not code:
        raise AddressError("an invite looks like roost://NODE-ID@NAME?at=HOST:PORT#CODE")
    return NodeLink.parse(link), code


async def become(wire: Wire, user: str, password: str, device_name: str, invite: str | None = None) -> Facts:
    """Log in, or register with an invite, over a checked wire; closes it. Raises `ApiError`, `Lost`."""
    seed = secrets.token_bytes(32)
    key = NodeKey(seed)
    proof = key.sign("device-login", api.login_bytes(wire.node, wire.welcome.nonce, user))
    request: api.AnyRequest
    if invite is None:
        request = api.Login(1, user, password, device_name, key.public, proof)
    else:
        request = api.Register(1, invite, user, password, device_name, key.public, proof)
    session = Session(wire)
    running = asyncio.create_task(session.run())
    try:
        async with asyncio.timeout(30.0):  # the node hashes the password, one login at a time
            result = await session.request(request)
    except TimeoutError:
        raise Unreachable("the node did not answer the login within 30 s; try again") from None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await wire.close()
    if not isinstance(result, api.LoggedIn):
        raise Lost("the node answered the login with something else")
    return Facts("", str(Address.parse(result.address)), result.device, result.token, seed)
