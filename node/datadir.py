"""The folder of one node: one process at a time, and its keys."""

import fcntl
import os
from pathlib import Path

from node import keys
from node.config import DATABASE
from node.errors import DataDirInUse, KeyExposed, StoreUnusable


def lock(data_dir: Path) -> int:
    """One process per data directory; the lock ends with the process, however that dies."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise DataDirInUse(f"{data_dir} is in use by another process; stop that one first") from None
    return handle


def private(data_dir: Path) -> None:
    """SQLite gives its WAL the mode of the database; the folder may be one that others can enter."""
    os.close(os.open(data_dir / DATABASE, os.O_RDWR | os.O_CREAT, 0o600))


def open_keys(data_dir: Path) -> keys.NodeKeys:
    try:
        return keys.load(data_dir)
    except FileNotFoundError:
        if (data_dir / DATABASE).exists():
            raise StoreUnusable(f"{data_dir / keys.FILE} is missing; restore it from your backup") from None
        return keys.create(data_dir)
    except keys.KeyExposed as error:
        raise KeyExposed(str(error)) from None
    except (ValueError, KeyError, OSError) as error:
        raise StoreUnusable(f"{data_dir / keys.FILE} cannot be read: {error}; restore it from your backup") from None
