"""A client inside the node's own process: the same SDK over an in-memory channel, with a stored device of its own."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from federation.identity import NodeKey
from federation.ids import DEVICE_ID_BYTES, to_text
from node.client import Client, Device, Wire, greet
from node.core.people import AddDevice, ChangeDevice, check_name
from node.storage import reads
from node.system import token_hash

if TYPE_CHECKING:
    from node.node import Node

FOLDER = "clients"
TOKEN_BYTES = 32


async def open_client(node: "Node", user: str, device: str) -> Client:
    """The user's stored device of that name, made on first use. Raises `ApiError` for an unknown user.

    Its token lives beside its store, below the data directory: whoever can read that is the node anyway.
    """
    folder = node.config.data_path / FOLDER / check_name(user) / check_name(device)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    token_file = folder / "token"
    held = await _known(node, user, token_file)
    if held is None:
        held = await _make(node, user, device, token_file)
        (folder / "client.db").unlink(missing_ok=True)  # of a device that was revoked
    name, token = held

    async def connect() -> Wire:
        return await greet(node.connect_inside(), node.link)

    who = Device(f"{user}@{node.us.name}", name)
    return await Client.open(who, connect=connect, token=token, store=folder / "client.db")


async def _known(node: "Node", user: str, token_file: Path) -> tuple[str, str] | None:
    token = _kept(token_file)
    if not token:
        return None
    found = await node.store.read(reads.device_by_token, token_hash(token))
    return (to_text(found[0].device), token) if found is not None and found[0].local == user else None


def _kept(token_file: Path) -> str:
    return token_file.read_text().strip() if token_file.exists() else ""


async def _make(node: "Node", user: str, device: str, token_file: Path) -> tuple[str, str]:
    """A new device; if its token cannot be kept, the device is revoked again."""
    token, raw = to_text(node.system.random(TOKEN_BYTES)), node.system.random(DEVICE_ID_BYTES)
    signing = NodeKey(node.system.random(32))
    await node.store.submit(AddDevice(raw, user, device, token_hash(token), signing.public))
    try:
        handle = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(token + "\n")
    except OSError:
        await node.store.submit(ChangeDevice(user, raw, revoke=True))
        raise
    return to_text(raw), token
