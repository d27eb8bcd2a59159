"""How a command ends: exit codes, and the one mapping from an exception to a code, words and a next step."""

import asyncio
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """What scripts branch on."""

    REACHED = 0
    BUG = 1  # never part of the contract: a mistake of ours
    USAGE = 2
    UNKNOWN = 3  # repeating with the same key is safe
    REFUSED = 4
    UNREACHABLE = 5
    STORE = 6


# Several messages end as one command: the least known outcome wins, because it asks for the most care.
_BY_CARE = (
    Exit.REACHED, Exit.UNREACHABLE, Exit.REFUSED, Exit.UNKNOWN, Exit.USAGE, Exit.STORE, Exit.BUG,
)  # fmt: skip


def worst(codes: list[Exit]) -> Exit:
    """The exit code of a command that did many things."""
    return max(codes, key=_BY_CARE.index, default=Exit.REACHED)


@dataclass(frozen=True)
class Problem:
    """One error as a person and a script get it."""

    exit: Exit
    code: str  # stable, for scripts
    message: str  # what happened
    next: str  # what to do


class CliError(Exception):
    """A problem the command line itself found."""

    def __init__(self, exit: Exit, code: str, message: str, next: str) -> None:
        super().__init__(message)
        self.problem = Problem(exit, code, message, next)


# Class (module, name) -> exit code, code for scripts, next step. Only modules that are loaded are looked at: an
# exception of a module that never loaded was not raised, and `roost send` need not load the server to know it.
KNOWN: tuple[tuple[str, str, Exit, str, str], ...] = (
    ("node.config", "ConfigError", Exit.USAGE, "bad_config",
     "correct the file; `roost check -c FILE` looks again"),
    ("federation.errors", "AddressError", Exit.USAGE, "bad_address", "correct it and try again"),
    ("node.client", "ProfileInUse", Exit.STORE, "profile_in_use",
     "one program uses a profile at a time; another login makes another profile"),
    ("node.client", "ProfileError", Exit.USAGE, "bad_profile",
     "`roost login NAME@NODE --node LINK --profile PROFILE` makes a profile"),
    ("node.client", "NodeKeyError", Exit.REFUSED, "wrong_node_key",
     "ask the administrator for the node's link, and do not go on before the keys agree; if the node was made anew, "
     "`roost logout --forget` clears the old profile away"),
    ("node.client", "NewerStore", Exit.STORE, "newer_store", "install the newer roost"),
    ("node.client", "StoreError", Exit.STORE, "store_unusable",
     "check disk space and the profile's folder"),
    ("node.client", "Unreachable", Exit.UNREACHABLE, "unreachable",
     "try again when the node answers"),
    ("node.client", "Lost", Exit.UNKNOWN, "connection_lost", "repeat with the same --key: that is safe"),
    ("node.errors", "BusyPort", Exit.USAGE, "busy_port",
     "stop the other program, or listen elsewhere: --set listen=HOST:PORT"),
    ("node.errors", "CannotListen", Exit.USAGE, "cannot_listen",
     "set `listen` to an address of this machine and a port you may use: --set listen=HOST:PORT"),
    ("node.errors", "DataDirInUse", Exit.STORE, "data_dir_in_use",
     "stop the other process, or use another folder"),
    ("node.errors", "NewerDatabase", Exit.STORE, "newer_database",
     "install the newer roost, or restore a backup"),
    ("node.errors", "BackupError", Exit.REFUSED, "bad_backup", "take another file or folder"),
    ("node.errors", "KeyExposed", Exit.STORE, "key_exposed", "`chmod 600` the key file, then start again"),
    ("node.errors", "StoreDamaged", Exit.STORE, "store_damaged",
     "`roost verify -c FILE` says what is damaged; `roost restore` brings a backup back"),
    ("node.errors", "StoreUnusable", Exit.STORE, "store_unusable",
     "check disk space and permissions, or the server of the `database` setting"),
    ("node.errors", "NodeDamaged", Exit.STORE, "store_damaged",
     "`roost verify -c FILE` says what is damaged; `roost restore` brings a backup back"),
    ("node.errors", "NodeFailed", Exit.STORE, "store_failed",
     "check the disk, then start again; nothing accepted is lost"),
    ("node.errors", "NodeError", Exit.STORE, "node_error", "read the log above"),
)  # fmt: skip

_NEXT = {
    "bad_login": "check the address and the password",
    "bad_token": "log in again: `roost login ... --profile PROFILE`",
    "bad_invite": "ask the administrator for a new invite",
    "name_taken": "choose another name",
    "unknown_node": "check the spelling; else ask the administrator of your node to add it",
    "unknown_user": "check the spelling of the address",
    "not_yours": "only its sender can",
    "not_found": "check the name or id, and that you may see it",
    "blocked": "`roost blocks` shows whom you blocked; else ask the administrator of your node why",
    "declined": "they have to accept you first",
    "conflict": "use a new --key for a new message",
    "bad_request": "correct it and try again",
    "held": "the administrator has to decide: `roost status` says why, `roost restore --accept` goes on",
    "storage_full": "the administrator has to free disk space; then try again",
}
_ADMIN_NEXT = {"conflict": "compare the node's link with its administrator"}
_ADMIN_EXITS = {
    "unreachable": Exit.UNREACHABLE, "store_unusable": Exit.STORE, "store_failed": Exit.STORE,
    "data_dir_in_use": Exit.STORE, "newer_database": Exit.STORE, "key_exposed": Exit.STORE,
    "failed": Exit.UNKNOWN,
}  # fmt: skip


def explain(error: BaseException) -> Problem:
    """Any exception as a problem; what is not known here is a bug of ours."""
    if isinstance(error, CliError):
        return error.problem
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return Problem(Exit.UNKNOWN, "interrupted", "interrupted", "repeat with the same --key: that is safe")
    if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        return explain(error.exceptions[0])
    if _is(error, "node.api", "ApiError") or _is(error, "node.admin", "AdminError"):
        code, message = str(getattr(error, "code", "failed")), str(getattr(error, "message", error))
        exit = _ADMIN_EXITS.get(code, Exit.REFUSED)
        hints = _NEXT | _ADMIN_NEXT if _is(error, "node.admin", "AdminError") else _NEXT
        return Problem(exit, code, message, hints.get(code) or _retry_hint(code))
    for module, name, exit, code, hint in KNOWN:
        if _is(error, module, name):
            return Problem(exit, code, str(error), hint)
    if isinstance(error, TimeoutError):
        return Problem(
            Exit.UNKNOWN,
            "timeout",
            str(error) or "no answer in time",
            "try again, or give a longer --timeout",
        )
    if isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return Problem(
            Exit.USAGE,
            "bad_file",
            f"{error.filename}: {error.strerror}",
            "check the path and its permissions",
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return Problem(Exit.STORE, "bad_file", f"{error.filename}: {error.strerror}", "check the disk")
    return Problem(Exit.BUG, "bug", f"a mistake in roost ({type(error).__name__})", _report(error))


def _is(error: BaseException, module: str, name: str) -> bool:
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(error, cls)


def _retry_hint(code: str) -> str:
    codes: dict[str, tuple[bool, str]] = getattr(sys.modules.get("node.api"), "CODES", {})
    return "try again later" if codes.get(code, (False, ""))[0] else "change the request; repeating it will not help"


def home() -> Path:
    """Where profiles and crash reports live."""
    return Path(os.environ.get("ROOST_HOME") or Path.home() / ".roost")


def _report(error: BaseException) -> str:
    """Writes the traceback away and says where; a person sees one line."""
    text = "".join(traceback.format_exception(error))
    for folder in (home() / "crash", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / f"roost-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            path.touch(mode=0o600)
            path.write_text(text)
        except OSError:
            continue
        return f"please report it with the file {path}"
    return "please report it (no crash file could be written)"
