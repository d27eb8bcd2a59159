"""The node as federation sees it: looks things up, and submits what arrived (`federation.running.Host`)."""

from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

from federation import wire
from federation.errors import AddressError
from federation.event import Signed
from federation.identity import Identity, encode_chain, split_host_port
from federation.ids import Log
from federation.link import Standing
from federation.ports import ChannelClosed
from federation.reach import Reach, may_call, reach_from
from federation.running import Found, Known, Look
from node.api import ApiError
from node.core.context import Context
from node.core.heal import TakeBack
from node.core.peers import STRANGERS, MeetPeer
from node.core.progress import PeerAcked
from node.core.receive import Receive
from node.directory import addresses
from node.healing import Healing
from node.storage import reads
from node.storage.writer import StoreFailed

if TYPE_CHECKING:
    from node.directory import Directory
    from node.storage.writer import Store

STRANGERS_MAX = 1024  # nodes that no administrator decided on: a key costs nothing, and `open` ones are called


class Host(Healing):
    def __init__(
        self,
        store: "Store",
        context: Context,
        directory: "Directory",
        light: Callable[[bytes, str, int], None],
        hold: Callable[[str, int], Awaitable[None]],
    ) -> None:
        super().__init__(store, context, hold)
        self._directory = directory
        self.light = light
        self.paused: dict[Log, str] = {}  # why a log waits at a peer, for `roost why`

    def known(self) -> Sequence[Known]:
        return [
            Known(peer.node, peer.name, standing(peer.state), addresses(peer))
            for peer in self._directory.peers.values()
        ]

    async def meet(self, identity: Identity, hello: wire.Hello, remote: str) -> Standing:
        taken, peers = self._directory.node_of(hello.name), self._directory.peers
        if identity.node not in peers and sum(p.state in STRANGERS for p in peers.values()) >= STRANGERS_MAX:
            return "blocked"
        reach = reach_from(remote)
        hints = tuple(address for address in hello.addresses if _is_hint(address, reach))
        try:
            peer = await self._store.submit(
                MeetPeer(identity.node, hello.name, encode_chain(hello.chain), hints, taken, reach)
            )
        except (ApiError, StoreFailed) as error:
            if isinstance(error, ApiError) and not error.retry:
                return "blocked"
            raise ChannelClosed(f"the hello was not stored: {error}") from None  # it calls again
        return standing(peer.state)

    async def pending(self, peer: bytes, look: Look) -> Found:
        sent = {log.key: seq for log, seq in look.sent.items()}
        resting = {log.key for log in look.resting}
        few = len(sent) + len(resting) < reads.LOGS_MAX  # to look past
        runs, turn, more = await self._store.read(
            reads.pending, peer, look.turn, sent, resting, look.events, look.bytes, hot=look.new and few
        )
        return Found([_segment(run) for run in runs], turn, more)

    async def receive(self, peer: bytes, segment: wire.Segment) -> wire.LogAck:
        try:
            notices = not segment.members  # nobody waits for them
            home = segment.origin == self._context.node  # our own, lost here
            command = TakeBack(peer, segment) if home else Receive(peer, segment)
            ack: wire.LogAck = await self._store.submit(command, later=notices)
            return ack
        except ApiError as error:  # full or busy: the peer keeps it and offers it again
            verdict = wire.Verdict(segment.first, "later", error.code, error.message[: wire.REASON_CHARS_MAX])
            return wire.LogAck(segment.conversation, segment.origin, segment.incarnation, 0, (verdict,))
        except StoreFailed as error:
            raise ChannelClosed(f"the store failed: {error}") from None

    async def acked(self, peer: bytes, ack: wire.LogAck) -> int:
        log = Log(ack.conversation, ack.origin, ack.incarnation)
        self.paused.pop(log, None)
        for verdict in ack.verdicts:
            if verdict.verdict == "later":
                self.paused[log] = f"{verdict.code}: {verdict.reason}"
        try:
            acked: int = await self._store.submit(PeerAcked(peer, ack), later=True)
            return acked
        except (ApiError, StoreFailed) as error:
            raise ChannelClosed(f"the acknowledgement was not stored: {error}") from None  # it is offered again


def _segment(run: reads.Run) -> wire.Segment:
    head, c = run.of.head, run.of.conversation
    return wire.Segment(
        head.conversation, head.origin, head.incarnation, run.after + 1,
        ((c.node_a, c.local_a), (c.node_b, c.local_b)) if c.kind == "direct" else (),
        tuple(Signed(e.header, e.signature, e.body) for e in run.events),
    )  # fmt: skip


def _is_hint(address: str, reach: Reach) -> bool:
    """A hello's other addresses are useless (PROTOCOL.md 3.2). A name is looked at when it is called."""
    try:
        host, _ = split_host_port(address)
    except AddressError:
        return False
    try:
        ip_address(host)
    except ValueError:
        return True
    return may_call(host, reach)


def standing(state: str) -> Standing:
    """What the other side may know of a peer's state here."""
    if state in ("accepted", "open"):
        return "accepted"
    return "blocked" if state == "blocked" else "pending"
