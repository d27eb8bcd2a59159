"""What commands open and close: a profile's client, a node's config, a password, lines from stdin."""

import asyncio
import getpass
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from node.cli.outcome import CliError, Exit

if TYPE_CHECKING:
    from node.client import Client
    from node.config import Config

LINE_BYTES_MAX = 1 << 20
CHUNKS_AHEAD_MAX = 4  # chunks of stdin read before anybody asked

# Options that many commands share, written once.
ConfigFile = Annotated[Path, Parameter(name=["-c", "--config"], help="The node's node.yaml.")]
Sets = Annotated[list[str], Parameter(name="--set", negative="", help="Override: key=value, repeatable.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON object a line.")]
Profile = Annotated[str, Parameter(name="--profile", help="A device on this machine, below $ROOST_HOME.")]
PasswordStdin = Annotated[bool, Parameter(name="--password-stdin", negative="", help="Read it from stdin.")]


def load_config(path: Path, overrides: list[str]) -> "Config":
    """The config of a node, or `ConfigError`."""
    from node import config_file

    return config_file.load(path, overrides)


@asynccontextmanager
async def opened(name: str) -> AsyncIterator["Client"]:
    """The client of a profile; closed, with what it acknowledged flushed, whatever happens."""
    from node.client import Client

    client = await Client.open_profile(name)
    try:
        yield client
    finally:
        await client.close()


def password(from_stdin: bool, confirm: bool = False) -> str:
    """A password without an echo; one newline at the end of stdin is not part of it."""
    if from_stdin:
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError:
            raise CliError(Exit.USAGE, "bad_text", "the password is not UTF-8", "convert it first") from None
        text = text[:-1] if text.endswith("\n") else text
        text = text[:-1] if text.endswith("\r") else text
    elif not sys.stdin.isatty():
        raise CliError(Exit.USAGE, "no_password", "there is no terminal to ask for a password", "use --password-stdin")
    else:
        text = getpass.getpass("Password: ")
        if confirm and getpass.getpass("Again: ") != text:
            raise CliError(Exit.USAGE, "bad_password", "the two passwords differ", "try again")
    if not text:
        raise CliError(Exit.USAGE, "no_password", "the password is empty", "give one, on stdin or at the prompt")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CliError(Exit.USAGE, "bad_text", "the password is not UTF-8", "convert it first") from None
    return text


async def stdin_lines(fd: int = 0) -> AsyncIterator[str]:
    """Lines as they come, without their ends.

    A daemon thread reads the bare file descriptor: files, pipes and terminals all work, and a reader that is
    stuck in the kernel never keeps the process alive.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue(CHUNKS_AHEAD_MAX)
    threading.Thread(target=_read, args=(fd, loop, chunks), daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise CliError(Exit.USAGE, "too_large", f"a line of stdin is over {LINE_BYTES_MAX} bytes", "split it")
        for raw in whole:
            yield _decode(raw)
    if rest:
        yield _decode(rest)


def _decode(raw: bytes) -> str:
    try:
        return raw.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise CliError(Exit.USAGE, "bad_text", f"stdin is not UTF-8: {raw[:40]!r}", "convert it first") from None


def _read(fd: int, loop: asyncio.AbstractEventLoop, chunks: "asyncio.Queue[bytes]") -> None:
    chunk = b"more"
    while chunk:
        try:
            chunk = os.read(fd, 1 << 16)
        except OSError:
            chunk = b""
        put = chunks.put(chunk)
        try:
            asyncio.run_coroutine_threadsafe(put, loop).result()
        except BaseException:  # the loop is gone, so nobody reads any more
            put.close()
            return
