"""What a node takes from the machine: time, chance, threads. The simulator hands in its own."""

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from nacl import pwhash
from nacl.exceptions import InvalidkeyError

T = TypeVar("T")
HASH_THREADS = 2  # Argon2id is slow on purpose: a flood of logins must not take every core
OPSLIMIT, MEMLIMIT_BYTES = 2, 19 << 20  # OWASP's Argon2id minimum
BOOT_CLOCK = hasattr(time, "CLOCK_BOOTTIME")


class System:
    """The real one."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._dummy = ""

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def chance(self) -> float:
        return random.random()

    def awake_ms(self) -> int:
        """Like `monotonic_ms`, and it goes on while the machine sleeps, where the system can tell."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 if BOOT_CLOCK else self.monotonic_ms()

    def disk(self, path: Path) -> tuple[int, int]:
        """Bytes free to us, and in all, of the disk that holds `path`. Raises `OSError`."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def random(self, size: int) -> bytes:
        return os.urandom(size)

    async def hash_password(self, password: str) -> str:
        """Argon2id as a PHC string, beside the loop."""
        return await self._run(_hash, password)

    async def check_password(self, hashed: str, password: str) -> bool:
        """Takes the same time for a user who does not exist (empty `hashed`)."""
        if not self._dummy:
            self._dummy = await self.hash_password("a password that nobody has")
        good = await self._run(_verify, hashed or self._dummy, password)
        return good and bool(hashed)

    async def _run(self, work: Callable[..., T], *args: str) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(HASH_THREADS, "roost-password")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


def _hash(password: str) -> str:
    return pwhash.argon2id.str(password.encode(), OPSLIMIT, MEMLIMIT_BYTES).decode()


def _verify(hashed: str, password: str) -> bool:
    try:
        return pwhash.argon2id.verify(hashed.encode(), password.encode())
    except InvalidkeyError:
        return False


def token_hash(token: str) -> bytes:
    """What is kept of a token or an invite code; 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).digest()
