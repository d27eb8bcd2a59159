"""The SDK: what a bot, the command line, the terminal client and an embedding app use to reach their own node.

It imports no server code. One message's way: `client.send` writes the outbox (`outbox`), `sync` transmits it over
a `session`, the reply and later watermarks move its state (`feed`), and `hub` tells whoever waits or watches.

- `client`    Client: the face; `asks` are its plain questions to the node
- `sync`      the one supervised task: connect, resume, reconnect; `drain` sends the outbox, `keep` stores what comes
- `events`    what `Client.events()` gives: acknowledged once the consumer asks for the next
- `signs`     typing and presence, which no store has
- `hub`       waiting for states, and coalesced changes for screens
- `session`   requests, replies and the bounded window over one connection
- `channels`  QUIC first, WebSocket (`websocket`) when it does not answer; `wire` checks the node's pinned key
- `store`     the durable local store: runner and schema; `outbox`, `feed`, `marks`, `rows` hold its SQL
- `profile`   a device on this machine: link, token and key in a private folder
- `model`     what callers get; `errors` what they may catch

Names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from node.client.channels import connect
    from node.client.client import Client
    from node.client.errors import (
        ClientError,
        Ended,
        Lost,
        NewerStore,
        NodeKeyError,
        ProfileError,
        ProfileInUse,
        StoreError,
        Unreachable,
    )
    from node.client.model import Change, Conversation, Lights, Message, Presence, Typing
    from node.client.profile import Device, Profile
    from node.client.wire import Wire, greet

__all__ = [
    "Change", "Client", "ClientError", "Conversation", "Device", "Ended", "Lights", "Lost", "Message", "NewerStore",
    "NodeKeyError", "Presence", "Profile", "ProfileError", "ProfileInUse", "StoreError", "Typing", "Unreachable",
    "Wire", "connect", "greet",
]  # fmt: skip
_HOMES = {
    "connect": "channels", "Client": "client", "Change": "model", "Conversation": "model", "Lights": "model",
    "Message": "model", "Presence": "model", "Typing": "model",
    "Device": "profile", "Profile": "profile", "Wire": "wire", "greet": "wire",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    return getattr(import_module(f"node.client.{_HOMES.get(name, 'errors')}"), name)
