"""Administration: one table of operations, reached over a Unix socket of the running node, or on the closed store.

One JSON line each way: {"op", "args"} and {"ok", "result"} or {"ok": false, "code", "message"}. The socket lies in
the data directory, whose mode (0700) is the permission.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from federation.errors import AddressError
from federation.identity import NodeLink
from federation.ids import EVENT_ID_BYTES, from_text, to_text
from node import api, blocks, doctor, keys, queues, repair
from node.api import ApiError
from node.config import DATABASE, SOCKET, Config
from node.core import rows
from node.core.peers import ChangePeer
from node.core.people import AddInvite, ChangeAccount, RevokeInvite
from node.directory import addresses
from node.errors import BackupError, NodeFailed
from node.hold import accept
from node.storage import reads, waits
from node.storage.writer import StoreFailed
from node.system import token_hash

if TYPE_CHECKING:
    from node.node import Node

LINE_BYTES_MAX = 1 << 20
OPEN_MAX = 64  # connections at once
ANSWER_BYTES_MAX = 256 << 20  # a list of everything there is
INVITE_S = 7 * 86400


class AdminError(Exception):
    """A refused operation; `code` is one of the client protocol's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


Args = dict[str, Any]


async def _status(node: "Node", args: Args) -> Any:
    from node.bounds import all_bounds  # it names what is here too

    waiting = await node.store.read(waits.waiting)
    links = node.service.links
    peers = [
        {
            "name": p.name,
            "node": to_text(p.node),
            "state": p.state,
            "link": "up" if p.node in links and links[p.node].state.up else "down",
            "waiting": waiting[p.node].events if p.node in waiting else 0,
            "transport": links[p.node].transport if p.node in links else "",
            "reason": node.service.backoffs[p.node].reason if p.node in node.service.backoffs else "",
        }
        for p in node.directory.peers.values()
    ]
    free, reserve, _ = node.upkeep.disk()
    return {
        "name": node.us.name,
        "node": to_text(node.us.node),
        "link": str(node.link),
        "incarnation": to_text(node.us.incarnation),
        "held": node.held,
        "users": len(await node.store.read(reads.all_accounts)),
        "clients": sum(len(group) for group in node.sessions.values()),
        "alarms": [{"alarm": name, "meaning": words} for name, words in node.upkeep.alarms.items()],
        "peers": peers,
        "store": {"commits": node.store.commits, "commands": node.store.commands, "waiting": node.store.waiting},
        "damage": {
            "rows": sum(node.store.damaged.values()),
            "failed": node.host.failures,
            "quarantine": await node.store.read(reads.quarantine_size),
        },
        "expired": node.upkeep.expired,
        "disk_free": free,
        "disk_reserve": reserve,
        "bounds": [
            {"name": b.name, "used": b.used, "bound": b.bound, "refused": b.refused, "then": b.then}
            for b in await all_bounds(node)
        ],
    }


async def _link(node: "Node", args: Args) -> Any:
    return str(node.link)


async def _check(node: "Node", args: Args) -> Any:
    return {"ok": True}


async def _user_add(node: "Node", args: Args) -> Any:
    await node.create_user(args["name"], args["password"])
    return {"address": f"{args['name']}@{node.us.name}"}


async def _user_list(node: "Node", args: Args) -> Any:
    found = await node.store.read(reads.all_accounts)
    return [{"name": a.local, "display_name": a.display_name, "state": a.state, "created": a.created_ms} for a in found]


def _user_state(state: Any) -> "Operation":
    async def change(node: "Node", args: Args) -> Any:
        await node.store.submit(ChangeAccount(args["name"], state=state))
        return {"name": args["name"], "state": state}

    return change


async def _user_passwd(node: "Node", args: Args) -> Any:
    hashed = await node.hash_password(args["password"])
    await node.store.submit(ChangeAccount(args["name"], password=hashed))
    # After it: no login with the old password comes any more.
    found = [] if args.get("keep_devices") else await node.store.read(reads.devices_of, str(args["name"]))
    devices = tuple(device.device for device in found)
    await node.store.submit(ChangeAccount(args["name"], revoke=devices))
    return {"name": args["name"], "logged_out": len(devices)}


async def _invite_new(node: "Node", args: Args) -> Any:
    if args.get("uses", 1) != 1:
        raise ApiError("bad_request", "an invite can be used once; make one for each person")
    code = to_text(node.system.random(20))
    expires = node.system.wall_ms() + int(args.get("expires_s") or INVITE_S) * 1000
    await node.store.submit(AddInvite(token_hash(code), expires))
    return {"invite": f"{node.link}#{code}", "id": to_text(token_hash(code))[:16], "expires": expires}


async def _invite_list(node: "Node", args: Args) -> Any:
    return [
        {
            "id": to_text(i.code_hash)[:16],
            "created": i.created_ms,
            "expires": i.expires_ms,
            "used_by": i.used_by,
            "revoked": bool(i.revoked_ms),
        }
        for i in await node.store.read(reads.all_invites)
    ]


async def _invite_revoke(node: "Node", args: Args) -> Any:
    for invite in await node.store.read(reads.all_invites):
        if to_text(invite.code_hash)[:16] == args["id"]:
            await node.store.submit(RevokeInvite(invite.code_hash))
            return {"id": args["id"]}
    raise ApiError("not_found", "there is no such invite; `roost invite list` shows them")


async def _peer_add(node: "Node", args: Args) -> Any:
    try:
        link = NodeLink.parse(args["link"])
    except AddressError as error:
        raise ApiError("bad_request", str(error)) from None
    if link.name == node.us.name and link.node != node.us.node:
        raise ApiError("conflict", f"{link.name} is this node's own name, with another key")
    taken = node.directory.node_of(link.name)
    change = ChangePeer(link.node, "accepted", link.name, link.addresses, taken)
    return await _change_peer(node, change)


async def _change_peer(node: "Node", change: ChangePeer) -> Any:
    peer = await node.store.submit(change)
    await node.peers_changed()  # answered when the next request can use it
    return _peer(peer)


def _peer_state(state: str) -> "Operation":
    async def change(node: "Node", args: Args) -> Any:
        return await _change_peer(node, ChangePeer(node.directory.find(args["node"]).node, state))

    return change


def _peer(peer: rows.Peer) -> Any:
    return {"name": peer.name, "node": to_text(peer.node), "state": peer.state, "addresses": list(addresses(peer))}


async def _peer_list(node: "Node", args: Args) -> Any:
    status = {p["node"]: p for p in (await _status(node, {}))["peers"]}
    return [_peer(p) | status[to_text(p.node)] for p in node.directory.peers.values()]


async def _why(node: "Node", args: Args) -> Any:
    try:
        event = from_text(args["event"], EVENT_ID_BYTES)
    except ValueError as error:
        raise ApiError("bad_request", str(error)) from None
    why: api.Why = await node.why(event)
    return msgspec.to_builtins(why)


async def _backup(node: "Node", args: Args) -> Any:
    if node.config.database:
        raise ApiError(
            "bad_request",
            f"the store is PostgreSQL: back it up with `pg_dump --format=custom`, and keep {keys.FILE} of "
            f"{node.config.data_path} and node.yaml with it; after `pg_restore` run `roost restore --accept -c FILE`",
        )
    from node import backup

    folder, us = node.config.data_path, node.us
    made = await asyncio.to_thread(
        backup.make, folder / DATABASE, folder / keys.FILE, str(args["text"]), Path(args["file"]),
        us.name, us.node, node.system.wall_ms(),
    )  # fmt: skip
    return {"name": us.name, "file": args["file"], "made": made.made_ms, "counts": made.counts}


async def _restore_accept(node: "Node", args: Args) -> Any:
    await accept(node)
    return {"name": node.us.name, "incarnation": to_text(node.us.incarnation)}


Operation = Callable[["Node", Args], Awaitable[Any]]
OPERATIONS: dict[str, Operation] = {
    "status": _status,
    "link": _link,
    "check": _check,
    "user.add": _user_add,
    "user.list": _user_list,
    "user.disable": _user_state("disabled"),
    "user.enable": _user_state("active"),
    "user.delete": _user_state("deleted"),
    "user.passwd": _user_passwd,
    "invite.new": _invite_new,
    "invite.list": _invite_list,
    "invite.revoke": _invite_revoke,
    "peer.add": _peer_add,
    "peer.list": _peer_list,
    "peer.accept": _peer_state("accepted"),
    "peer.block": _peer_state("blocked"),
    "peer.remove": _peer_state("removed"),
    "backup": _backup,
    "restore.accept": _restore_accept,
    "why": _why,
    "doctor": doctor.examine,
    "queue.list": queues.show,
    "queue.flush": queues.flush,
    "queue.expire": queues.expire,
    **blocks.OPERATIONS,
    **repair.OPERATIONS,
}


async def perform(node: "Node", op: str, args: Args) -> Any:
    """Raises `AdminError`."""
    if op not in OPERATIONS:
        raise AdminError("bad_request", f"no operation {op[:40]!r}")
    try:
        return await OPERATIONS[op](node, args)
    except ApiError as error:
        raise AdminError(error.code, error.message) from None
    except KeyError as error:
        raise AdminError("bad_request", f"{op} needs {error}") from None
    except BackupError as error:
        raise AdminError("bad_backup", str(error)) from None
    except (StoreFailed, NodeFailed) as error:
        raise AdminError("failed", str(error)) from None
    except Exception as error:  # a value of another type, or a bug: the connection is answered and goes on
        node.report(error)
        raise AdminError("failed", f"{op} failed: {error!r}") from None


class _Request(msgspec.Struct):
    op: str
    args: Args = {}


def read_request(line: bytes) -> _Request:
    """One line of the socket; `AdminError` for anything else."""
    try:
        return msgspec.json.decode(line, type=_Request)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise AdminError("bad_frame", f"not a request: {str(error)[:120]!r}") from None


class AdminSocket:
    def __init__(self, node: "Node") -> None:
        self._node = node
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.refused = 0

    @property
    def open_now(self) -> int:
        return len(self._open)

    async def open(self) -> None:
        with _near(self._node.config) as path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # left by a crash; the lock says that nobody else is there
            self._server = await asyncio.start_unix_server(self._serve, path, limit=LINE_BYTES_MAX)
            os.chmod(path, 0o600)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= OPEN_MAX:
            self.refused += 1
            writer.write(msgspec.json.encode({"ok": False, "code": "busy", "message": "too many ask at once"}) + b"\n")
            writer.close()
            return
        self._open.add(writer)
        try:
            while line := await reader.readline():
                answer: dict[str, Any]
                try:
                    request = read_request(line)
                    result = await perform(self._node, request.op, request.args)
                    answer = {"ok": True, "result": result}
                except AdminError as error:
                    answer = {"ok": False, "code": error.code, "message": str(error)}
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # the command line went away; what it asked was done or not, and it can look
        except ValueError:  # where the next line begins is not known
            words = f"a request has at most {LINE_BYTES_MAX} bytes"
            writer.write(msgspec.json.encode({"ok": False, "code": "too_large", "message": words}) + b"\n")
        finally:
            self._open.discard(writer)
            writer.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.close()
            await self._server.wait_closed()
            with _near(self._node.config) as path, contextlib.suppress(FileNotFoundError):
                os.unlink(path)


@contextlib.contextmanager
def _near(config: Config) -> "Any":
    """The socket's path, short enough for the kernel (108 bytes) however deep the data directory lies."""
    folder = os.open(config.data_path, os.O_RDONLY)
    try:
        short = f"/proc/self/fd/{folder}"
        yield f"{short}/{SOCKET}" if os.path.exists(short) else str(config.data_path / SOCKET)
    finally:
        os.close(folder)


async def call(config: Config, op: str, args: Args) -> Any:
    """Ask the running node; when none runs, open its store and do it there. Raises `AdminError` or `NodeError`."""
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        with _near(config) as path:
            reader, writer = await asyncio.open_unix_connection(path, limit=ANSWER_BYTES_MAX)
        try:
            writer.write(msgspec.json.encode({"op": op, "args": args}) + b"\n")
            line = await reader.readline()
        except ConnectionError:
            line = b""
        finally:
            writer.close()
        if not line:
            raise AdminError("failed", "the node stopped before it answered; look, then try again")
        answer = msgspec.json.decode(line, type=dict[str, Any])
        if not answer["ok"]:
            raise AdminError(answer["code"], answer["message"])
        return answer["result"]
    if op == "verify":  # what it is to look at may be too damaged to be opened
        return await repair.look_closed(config)
    async with _closed(config) as node:
        return await perform(node, op, args)


@contextlib.asynccontextmanager
async def _closed(config: Config) -> "AsyncIterator[Node]":
    from node.node import Node

    async with Node.open(config, listen=False) as node:
        yield node
