"""Whom a user wants nothing of, and whom this node wants nothing of for all its users: said, and taken back."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from federation.ids import User
from node.api import ApiError
from node.core import log, rows
from node.core.authorize import authorize
from node.core.context import Context
from node.core.view import Key, View

BLOCKS_MAX = 1000  # of one user


@dataclass(frozen=True, slots=True)
class ChangeBlock:
    """Block a user, or with an empty local name all of a node; or take that back. `local` empty: for the whole node.

    What they asked and nobody answered is declined with it.
    """

    local: str
    other: User
    on: bool
    asked: tuple[bytes, ...] = ()  # conversations in which they wait for an answer, as read just before
    while_held: ClassVar = True

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Block, (self.local, *self.other)
        yield rows.Peer, (self.other.node,)
        if self.local:
            yield rows.Account, (self.local,)
            for conversation in self.asked:
                yield rows.Standing, (conversation, self.local)
                yield rows.Conversation, (conversation,)
            yield rows.Mailbox, (self.local,)

    def decide(self, view: View, context: Context) -> None:
        if self.local:
            authorize(view, context, self.local, "blocks")
        old = view.get(rows.Block, self.local, *self.other)
        if not self.on:
            if old is None:
                raise ApiError("not_found", "that is not blocked here")
            view.delete(old)
            self._count(view, -1)
            return
        if self.other.node == context.node and (not self.local or self.other.local in ("", self.local)):
            raise ApiError("bad_request", "that is this node, or yourself; a user of this node can be disabled")
        if old is not None:
            return
        self._count(view, 1)
        view.put(rows.Block(self.local, *self.other, context.now_ms))
        for conversation in self.asked:
            standing = view.get(rows.Standing, conversation, self.local)
            if standing is not None and standing.state == "request":
                standing = standing._replace(state="declined")
                view.put(standing)
                log.conversation_fact(view, context, standing)

    def _count(self, view: View, more: int) -> None:
        if not self.local:
            return
        account = view.get(rows.Account, self.local)
        assert account is not None
        if account.blocks + more > BLOCKS_MAX:
            raise ApiError("too_large", f"you block {BLOCKS_MAX} already; unblock some, or decline")
        view.put(account._replace(blocks=max(0, account.blocks + more)))
