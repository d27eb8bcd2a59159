"""One file that holds all a restore needs: store, key and config, with their hashes; and its unpacking.

The file is an uncompressed tar: the manifest first, then what it lists, in its order. It holds the node's private
keys: its mode is 0600.
"""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec

from federation.identity import check_chain
from federation.ids import to_text
from node import keys, witness
from node.config import DATABASE
from node.errors import BackupError
from node.storage import copying

MANIFEST, CONFIG = "manifest.json", "node.yaml"
NAMES = (CONFIG, keys.FILE, DATABASE)
FORMAT = 1
SMALL_BYTES_MAX = 1 << 20  # of anything but the store
CHUNK = 1 << 20


class Part(msgspec.Struct, frozen=True):
    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    format: int
    name: str  # of the node
    node: str
    made_ms: int
    counts: dict[str, int]
    parts: tuple[Part, ...]


def make(database: Path, key: Path, config: str, file: Path, name: str, node: bytes, now_ms: int) -> Manifest:
    """Write the backup; it is there whole or not at all. Raises `BackupError`."""
    if file.exists():
        raise BackupError(f"{file} exists already; choose another name, nothing was changed")
    store, draft = (file.with_name(f".{file.name}.{os.getpid()}.{part}") for part in ("db", "new"))
    try:
        counts = copying.copy(database, store)
        contents = {CONFIG: config.encode(), keys.FILE: key.read_bytes()}
        parts = [Part(n, len(content), hashlib.sha256(content).hexdigest()) for n, content in contents.items()]
        with store.open("rb") as opened:
            parts.append(Part(DATABASE, store.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()))
            opened.seek(0)
            manifest = Manifest(FORMAT, name, to_text(node), now_ms, counts, tuple(parts))
            _write(draft, {MANIFEST: msgspec.json.encode(manifest), **contents}, opened)
        with tarfile.open(draft, "r:") as tar:  # what was written is what is read
            for _ in _parts(tar, read_manifest(tar)):
                pass
        draft.rename(file)
        witness.sync_folder(file.parent)
    except copying.Damaged as error:
        raise BackupError(f"{error}; there is no backup") from None
    except OSError as error:
        raise BackupError(f"{error.filename or file}: {error.strerror}; there is no backup") from None
    finally:
        store.unlink(missing_ok=True)
        draft.unlink(missing_ok=True)
    return manifest


def _write(file: Path, contents: dict[str, bytes], store: IO[bytes]) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as opened, tarfile.open(fileobj=opened, mode="w:") as tar:
        for name, content in contents.items():
            tar.addfile(_info(name, len(content)), io.BytesIO(content))
        tar.addfile(_info(DATABASE, os.fstat(store.fileno()).st_size), store)
        tar.close()
        opened.flush()
        os.fsync(opened.fileno())


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


def read_manifest(tar: tarfile.TarFile) -> Manifest:
    """Raises `BackupError`."""
    first = tar.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > SMALL_BYTES_MAX:
        raise BackupError("that is not a backup of a node: it does not begin with a manifest")
    content = tar.extractfile(first)
    assert content is not None
    try:
        manifest = msgspec.json.decode(content.read(), type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BackupError(f"the manifest cannot be read: {str(error)[:100]}") from None
    if manifest.format != FORMAT:
        raise BackupError(f"the backup has format {manifest.format}, this version of Roost knows {FORMAT}")
    return manifest


def _parts(tar: tarfile.TarFile, manifest: Manifest) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Every file of it with its content, which is checked as it is read; nothing else may be there."""
    if tuple(part.name for part in manifest.parts) != NAMES:
        raise BackupError("the manifest does not list what a backup has")
    for part in manifest.parts:
        info = tar.next()
        if info is None or info.name != part.name or not info.isreg() or info.size != part.size:
            raise BackupError(f"{part.name} is missing or has another length: the file is damaged")
        chunks = _checked(tar.extractfile(info), part)
        yield part.name, chunks
        for _ in chunks:
            pass
    if tar.next() is not None:
        raise BackupError("there is more in the file than a backup has")


def _checked(content: IO[bytes] | None, part: Part) -> Iterator[bytes]:
    assert content is not None
    digest = hashlib.sha256()
    while chunk := content.read(CHUNK):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != part.sha256:
        raise BackupError(f"{part.name} is not what the manifest says: the file is damaged")


def unpack(file: Path, folder: Path) -> Manifest:
    """Make a node's folder out of a backup; the node in it is held. Raises `BackupError` or `OSError`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BackupError(f"{folder} is not an empty folder; choose another one, nothing was changed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.restoring")
    shutil.rmtree(draft, ignore_errors=True)  # of an earlier try
    try:
        (draft / "data").mkdir(parents=True, mode=0o700)
        draft.chmod(0o700)
        manifest = _unpack(file, draft)
        draft.rename(folder)
        witness.sync_folder(folder.parent)
    except tarfile.TarError as error:
        raise BackupError(f"{file} is not a backup of a node, or it is damaged: {error}") from None
    except copying.Damaged as error:
        raise BackupError(f"{error}; nothing was restored") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _unpack(file: Path, draft: Path) -> Manifest:
    with tarfile.open(file, "r:") as tar:
        manifest = read_manifest(tar)
        for name, chunks in _parts(tar, manifest):
            to = draft / name if name == CONFIG else draft / "data" / name
            handle = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as opened:
                for chunk in chunks:
                    opened.write(chunk)
                opened.flush()
                os.fsync(handle)
    counts, owner = copying.look(draft / "data" / DATABASE)
    node = check_chain(keys.load(draft / "data").chain).node
    if counts != manifest.counts or owner != node or to_text(node) != manifest.node:
        raise BackupError("store, key and manifest do not belong together")
    made = datetime.fromtimestamp(manifest.made_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    copying.hold(draft / "data" / DATABASE, f"it was restored from a backup made at {made}")
    for path in (draft / "data", draft):
        witness.sync_folder(path)
    return manifest
