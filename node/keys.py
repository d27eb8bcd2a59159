"""The node's private keys on disk: one file, mode 0600, refused when others can read it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from federation.identity import Chain, Identity, NodeKey, check_chain, decode_chain, encode_chain, new_chain

FILE = "node.key"
SEED_BYTES = 32


class KeyExposed(Exception):
    """Others can read the key file; whoever copied it can speak as this node."""


class NodeKeys(NamedTuple):
    key: NodeKey
    chain: Chain
    identity: Identity


def create(data_dir: Path, entropy: Callable[[int], bytes] = os.urandom) -> NodeKeys:
    """Make and save a new identity; `FileExistsError` when there is one."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    seed, recovery = entropy(SEED_BYTES), entropy(SEED_BYTES)
    key = NodeKey(seed)
    chain = new_chain(key, NodeKey(recovery).public, entropy(SEED_BYTES))
    lines = [f"signing {seed.hex()}", f"recovery {recovery.hex()}", f"chain {encode_chain(chain).hex()}", ""]
    handle = os.open(data_dir / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, "\n".join(lines).encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    return NodeKeys(key, chain, check_chain(chain))


def load(data_dir: Path) -> NodeKeys:
    """The saved identity; `FileNotFoundError` or `KeyExposed`."""
    path = data_dir / FILE
    if path.stat().st_mode & 0o077:
        raise KeyExposed(f"{path} can be read by others; run: chmod 600 {path}")
    fields = dict(line.split(" ", 1) for line in path.read_text().splitlines() if line)
    chain = decode_chain(bytes.fromhex(fields["chain"]))
    return NodeKeys(NodeKey(bytes.fromhex(fields["signing"])), chain, check_chain(chain))
