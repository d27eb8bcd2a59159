"""What one node may change alone: storage, mailboxes, accounts, client protocol, gateways, the client SDK.

Names load on first use, so a bot or the terminal client never pays for the server's libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from node.config import Config
    from node.errors import NodeFailed
    from node.node import Node

__all__ = ["Config", "Node", "NodeFailed"]
_HOMES = {"Config": "node.config", "Node": "node.node", "NodeFailed": "node.errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(import_module(_HOMES[name]), name)
