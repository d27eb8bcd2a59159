"""What a running node looks after by itself: room on the disk, a clock that jumps, messages that nobody takes.

An *alarm* is something that its administrator has to know: a line in `roost status`, and in the log when it begins
and ends.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from node.api import ApiError
from node.config import Limits
from node.core.context import Context
from node.core.progress import GiveUp
from node.storage import waits
from node.storage.writer import StoreFailed

if TYPE_CHECKING:
    from node.node import Node

LOOK_S = 2.0
EXPIRY_EVERY_MS = 600_000
EXPIRY_MS = 30 * 86_400_000  # a direct message that no device's node took for so long has failed
RESERVE_SHARE, RESERVE_BYTES_MAX = 20, 512 << 20  # a twentieth of the disk, and not more
DRIFT_MS_MAX = 60_000  # of wall time against elapsed time: more was no fine adjustment
SLEW = 1000  # one ms in so many is
log = logging.getLogger("roost.node")


def set_limits(context: Context, limits: Limits) -> None:
    """What the settings say of the bounds that decisions look at."""
    context.mailbox_items_max, context.mailbox_bytes_max = limits.mailbox_messages, limits.mailbox_bytes
    context.waiting_max, context.waiting_bytes_max = limits.waiting_per_peer_events, limits.waiting_per_peer_bytes
    context.message_bytes_max, context.peer_quota = limits.message_bytes, limits.peer_quota_bytes


class Upkeep:
    def __init__(self, node: "Node") -> None:
        self._node = node
        self.alarms: dict[str, str] = {}  # by name, in words
        self.expired = 0  # messages
        self._base = node.system.wall_ms() - node.system.awake_ms()
        self._looked_ms = node.system.awake_ms()
        self._expiry_due_ms = self._looked_ms  # the first look is soon after the start
        self.look()  # a node that starts on a full disk takes nothing new from the start

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()
            if self.may_expire():
                self._expiry_due_ms = self._node.system.awake_ms() + EXPIRY_EVERY_MS
                await self.expire()

    def look(self) -> None:
        """At what can change at any time."""
        self._look_at_disk()
        self._look_at_clock()

    def alarm(self, name: str, words: str) -> None:
        """Raise an alarm, or with no words end it."""
        if bool(words) != (name in self.alarms):
            log.warning("%s", words or f"{name}: all right again")
        if words:
            self.alarms[name] = words
        else:
            self.alarms.pop(name, None)

    # --- disk ---------------------------------------------------------------------------------------------------------
    def disk(self) -> tuple[int, int, int]:
        """Free bytes, the reserve that is kept, and the whole disk. Raises `OSError`."""
        free, whole = self._node.system.disk(self._node.config.data_path)
        wanted = self._node.config.limits.disk_reserve_bytes
        return free, wanted or min(whole // RESERVE_SHARE, RESERVE_BYTES_MAX), whole

    def _look_at_disk(self) -> None:
        """Below the reserve nothing is taken that makes the store grow; reading, acknowledging, deleting goes on."""
        try:
            free, reserve, _ = self.disk()
        except OSError:
            return  # a write will say what is wrong
        low = free < (2 * reserve if self._node.store.full else reserve)
        words = f"{free >> 20} MiB are free on the node's disk, and {reserve >> 20} MiB are kept in reserve"
        self._node.store.full = f"{words}; its owner must make room" if low else ""
        self.alarm("disk", f"{words}: nothing new is taken until twice that is free" if low else "")

    # --- clock --------------------------------------------------------------------------------------------------------
    def _look_at_clock(self) -> None:
        """Wall time that jumped is not believed: nothing expires until it is back, or the node is started again."""
        now = self._node.system.awake_ms()
        drift = self._node.system.wall_ms() - now - self._base
        if abs(drift) <= DRIFT_MS_MAX:
            fine = (now - self._looked_ms) // SLEW + 1
            self._base += max(-fine, min(fine, drift))
        self._looked_ms = now
        words = f"the clock was set {drift // 1000:+d} s while the node ran; if that is right, restart the node"
        self.alarm("clock", f"{words}: until then nothing expires" if abs(drift) > DRIFT_MS_MAX else "")

    def may_expire(self) -> bool:
        """Whether it is time to look for what expired, and the clock is believed."""
        due = self._node.system.awake_ms() >= self._expiry_due_ms
        return due and "clock" not in self.alarms and not self._node.held

    # --- messages that nobody takes -----------------------------------------------------------------------------------
    async def expire(self) -> None:
        """Direct messages that waited too long fail; their senders see it."""
        before = self._node.system.wall_ms() - EXPIRY_MS
        try:
            self.expired += await self.give_up(None, before, "expired", "their node did not take it for 30 days")
        except (ApiError, StoreFailed) as error:
            log.warning("messages that expired are not told yet: %s", error)

    async def give_up(self, peer: bytes | None, before_ms: int, code: str, reason: str) -> int:
        """Direct messages that wait for a peer (or for any) since before `before_ms` fail with a code and words.

        Gives how many. Raises `ApiError`, `StoreFailed`.
        """
        count = 0
        while found := await self._node.store.read(waits.overdue, peer, before_ms):
            commands = [GiveUp(to, of, last, code, reason) for to, of, last in found]
            done = sum(await asyncio.gather(*map(self._node.store.submit, commands)))
            if not done:
                break
            count += done
        return count
