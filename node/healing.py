"""The shell around `node.core.heal`: what a link asks so that a node notices that its store was set back, and heals."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from federation import wire
from federation.errors import ProtocolError
from federation.event import Signed, read_event, signature_holds
from federation.ids import LOG_KEY_BYTES, notice_conversation
from federation.ports import ChannelClosed
from federation.running import Ask
from node.api import ApiError
from node.core.context import Context
from node.core.heal import DONE, HOME, GiveBack, Healed, Rewind
from node.core.rows import Heal
from node.storage import life, reads
from node.storage.writer import StoreFailed

if TYPE_CHECKING:
    from node.storage.writer import Store

log = logging.getLogger("roost.node")
PAGE = 64  # logs looked at together
LAST_KEY = b"\xff" * LOG_KEY_BYTES
PAUSE_S = 1.0  # between looks whether everything came home
STUCK = 90  # looks without progress, longer than a log rests: what is left does not come


class Healing:
    """Four answers for `federation.running.Host`."""

    def __init__(self, store: "Store", context: Context, hold: Callable[[str, int], Awaitable[None]]) -> None:
        self._store, self._context, self._hold = store, context, hold

    async def newest(self, peer: bytes) -> wire.Newest | None:
        """What we hold of the peer's own, for it to see."""
        return await self._store.read(life.newest, peer)

    async def shown(self, peer: bytes, newest: wire.Newest) -> bool:
        """False when the peer holds an event of ours that was lost here, which it has just proved."""
        context = self._context
        try:
            event = read_event(Signed(newest.header, newest.signature, None))
        except ProtocolError:
            return True
        h = event.header
        ours = h.origin == context.node and any(signature_holds(event, key) for key in context.keys)
        if not ours or h.stamp < context.restored or await self._store.read(life.log_seq, h.log.key) >= h.seq:
            return True
        await self._hold("a peer has events of this node that are not in its store: it is an old copy", h.stamp)
        return False

    def restored(self) -> bool:
        return self._context.restored > 0

    async def recalled(self, peer: bytes, recall: wire.Recall) -> wire.Recalled:
        """The peer was restored: give back what it lacks, in steps that harm nobody else."""
        own, said, after, lacking = self._context.node, dict(recall.logs), recall.after, 0
        notices = notice_conversation(own, peer)
        while True:
            if recall.whose == "mine":
                page = await self._store.read(life.kept_logs, peer, notices, after, recall.upto, PAGE)
            else:
                page = await self._store.read(life.acked_logs, own, peer, after, recall.upto, PAGE)
            less = {key: said.get(key, 0) for key, seq in page if said.get(key, 0) < seq}
            if less:
                lacking += len(less)
                await self._submit(GiveBack(peer, less) if recall.whose == "mine" else Rewind(peer, less))
            if len(page) < PAGE:
                return wire.Recalled(recall.upto, lacking)
            after = page[-1][0]

    async def heal(self, peer: bytes, ask: Ask) -> None:
        """Once per restore and peer: our own logs come home, then the peer sends its own again (PROTOCOL.md 10.2)."""
        restored = self._context.restored
        if not restored:
            return
        row: Heal | None = await self._store.read(reads.heal, peer)
        phase = row.phase if row is not None and row.restored == restored else 0
        if phase < HOME:
            await self._bring_home(peer, ask)
            await self._submit(Healed(peer, HOME))
        if phase < DONE:
            await self._pass(peer, "yours", ask)
            await self._submit(Healed(peer, DONE))
            log.warning("what this node had of its peer %s before the restore comes back", peer.hex()[:8])

    async def _bring_home(self, peer: bytes, ask: Ask) -> None:
        before, still = -1, 0
        while True:
            lacking, total = await self._pass(peer, "mine", ask)
            if not lacking:
                return
            still = still + 1 if total == before else 0
            before = total
            if still >= STUCK:
                log.error("%s logs of ours do not come back whole from the peer %s", lacking, peer.hex()[:8])
                return
            await asyncio.sleep(PAUSE_S)

    async def _pass(self, peer: bytes, whose: str, ask: Ask) -> tuple[int, int]:
        """Every log once: how many the peer found lacking, and how many events there are here."""
        after, lacking, total = b"", 0, 0
        while True:
            if whose == "mine":
                own = self._context.node
                page = await self._store.read(life.shared_logs, own, peer, after, LAST_KEY, wire.RECALLED_MAX)
            else:
                page = await self._store.read(life.logs_of, peer, after, LAST_KEY, wire.RECALLED_MAX)
            upto = LAST_KEY if len(page) < wire.RECALLED_MAX else page[-1][0]
            answer = await ask(wire.Recall(whose, after, upto, tuple(page)))  # type: ignore[arg-type]
            lacking += answer.lacking
            total += sum(seq for _, seq in page)
            if upto == LAST_KEY:
                return lacking, total
            after = upto

    async def _submit(self, command: GiveBack | Rewind | Healed) -> None:
        try:
            await self._store.submit(command)
        except (ApiError, StoreFailed) as error:
            raise ChannelClosed(f"the store did not take it: {error}") from None  # asked again on the next link
