"""What a peer may make this node store though nobody here asked for it: refused events, proofs of its lies, messages
that wait for consent, notices without news. Messages that people want count against their mailboxes instead."""

from node.core import rows

FORGIVEN_MS = 30 * 86_400_000  # in so much time a whole quota is forgiven


def used(peer: rows.Peer, now_ms: int, quota: int) -> int:
    """Bytes of its quota that a peer has used."""
    return max(0, peer.used - quota * max(0, now_ms - peer.used_ms) // FORGIVEN_MS)


def charge(peer: rows.Peer, cost: int, now_ms: int, quota: int) -> rows.Peer | None:
    """The peer with `cost` more bytes used; none where that goes beyond its quota."""
    total = used(peer, now_ms, quota) + cost
    return None if total > quota else peer._replace(used=total, used_ms=now_ms)
