"""The one place that says who may do what. Default deny: an operation that is not named here is refused."""

from typing import NamedTuple

from federation.ids import User, direct_conversation
from node.api import ApiError
from node.core import log, rows
from node.core.acts import may_delete, may_edit
from node.core.context import Context
from node.core.view import Key, View

ACTS = frozenset({"edit", "delete", "reaction", "pin", "unpin"})
SELF = frozenset({"feed", "history", "state", "devices", "profile", "receipts", "requests", "blocks", "ephemerals"})


def authorize(view: View, context: Context, actor: str, operation: str, object_: object = None) -> None:
    """Let a local user do an operation on an object, or raise `ApiError`. Every door calls this."""
    account = view.get(rows.Account, actor)
    if account is None or account.state == "deleted":
        raise ApiError("bad_token", "this account does not exist any more")
    if account.state != "active":
        raise ApiError("disabled", f"the account {actor}@{context.name} is disabled; ask its administrator")
    if operation in SELF:
        return
    if operation == "send" and isinstance(object_, User):
        return _send(view, context, actor, object_)
    if operation in ACTS and isinstance(object_, Authored):
        return _act(view, User(context.node, actor), operation, object_)
    raise ApiError("forbidden", f"{operation} is not allowed")


def block_keys(context: Context, account: rows.Account, other: User) -> list[Key]:
    """What `is_blocked` reads: this user's own word where they have any, and the node's about users of other nodes."""
    keys: list[Key] = []
    if other.node != context.node:
        keys.append((rows.Block, ("", other.node, other.local)))
    if account.blocks:
        keys += [(rows.Block, (account.local, other.node, who)) for who in (other.local, "")]
    return keys


def is_blocked(view: View, context: Context, account: rows.Account, other: User) -> bool:
    """Whether a local user, or this node for all of its users, wants nothing of somebody: no message of theirs is
    taken, none goes to them, and no sign of life."""
    if other == User(context.node, account.local):
        return False
    keys = block_keys(context, account, other)
    view.want(*keys)
    return any(view.get(row, *key) is not None for row, key in keys)


class Authored(NamedTuple):
    """What an act is about: a message of a conversation in which the actor may send, and who wrote it."""

    conversation: bytes
    author: User


def _act(view: View, actor: User, operation: str, of: Authored) -> None:
    if operation == "edit" and not may_edit(actor, of.author):
        raise ApiError("not_yours", "only who wrote a message may edit it")
    if operation == "delete" and not may_delete(view, of.conversation, actor, of.author):
        raise ApiError("not_yours", "only who wrote a message may delete it")


def _send(view: View, context: Context, actor: str, other: User) -> None:
    mine = view.get(rows.Account, actor)
    assert mine is not None
    if is_blocked(view, context, mine, other):
        raise ApiError("blocked", f"{log.address(view, context, other)} is blocked; unblock them before you write")
    if other.node == context.node:
        account = view.get(rows.Account, other.local)
        if account is None or account.state == "deleted":
            raise ApiError("unknown_user", f"{context.name} has no user {other.local}")
        if other.local != actor and log.is_full(view, context, other.local):
            full = f"the mailbox of {other.local}@{context.name} is full until one of their devices fetches it"
            raise ApiError("mailbox_full", full)
        theirs = view.get(rows.Standing, direct_conversation(User(context.node, actor), other), other.local)
        declined = theirs is not None and theirs.state == "declined" and other.local != actor
        if declined or is_blocked(view, context, account, User(context.node, actor)):
            raise ApiError("declined", f"{other.local}@{context.name} does not take messages from you")
    else:
        _peer(view, context, other)
    if log.is_full(view, context, actor):
        box = view.get(rows.Mailbox, actor)
        few = f"none of your devices acknowledged its last {box.items if box else 0} messages"
        raise ApiError("mailbox_full", f"your own mailbox is full: {few}; let one of them receive, then try again")


def _peer(view: View, context: Context, other: User) -> None:
    peer = view.get(rows.Peer, other.node)
    if peer is None:
        raise ApiError("unknown_node", "that node is not known here; its administrator's link makes it known")
    if peer.state == "blocked":
        raise ApiError("blocked", f"{peer.name} is blocked here")
    waiting = view.get(rows.Destination, other.node)
    if waiting is not None and (waiting.waiting >= context.waiting_max or waiting.bytes >= context.waiting_bytes_max):
        many = f"{waiting.waiting} messages of {waiting.bytes >> 20} MiB already wait for {peer.name}"
        raise ApiError("destination_backlogged", f"{many}; try later")
