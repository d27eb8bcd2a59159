"""What an administrator does about damage: `roost verify` and `roost quarantine`, beside a running node or without."""

import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from federation.identity import encode_chain
from federation.ids import to_text
from node.api import ApiError
from node.config import Config
from node.core import rows
from node.core.quarantine import Release
from node.datadir import lock, open_keys
from node.errors import NewerDatabase, StoreUnusable
from node.storage import reads, verify
from node.storage.migrate import HEAD, version
from node.storage.runner import open_runner, said, store_name

if TYPE_CHECKING:
    from node.node import Node

EXAMPLES_MAX = 3  # rows named for each kind of damage
Read = Callable[..., Awaitable[Any]]


async def look(read: Read, node: bytes, chain: bytes) -> dict[str, Any]:
    """The whole store, in bounded memory: each kind of damage with how many, a few of them, and what to do."""
    kinds: dict[tuple[str, str], list[str]] = {}
    counts: dict[tuple[str, str], int] = {}
    total = 0

    def note(findings: list[verify.Finding]) -> None:
        for table, kind, where in findings:
            counts[table, kind] = counts.get((table, kind), 0) + 1
            some = kinds.setdefault((table, kind), [])
            if len(some) < EXAMPLES_MAX:
                some.append(where)

    try:
        note(await read(verify.integrity))
        at: verify.Place | None = verify.Place()
        while at is not None:
            seen: verify.Seen = await read(verify.page, node, chain, at)
            note(seen.findings)
            total, at = total + seen.rows, seen.next
    except Exception as error:  # so damaged that not all of it can be read
        note([verify.Finding("(all)", "structure", said(error))])
    return {
        "ok": all(kind in verify.HARMLESS for _, kind in kinds),
        "rows": total,
        "findings": [
            {
                "table": table, "kind": kind, "count": counts[table, kind], "examples": some,
                "means": verify.MEANINGS[kind][0], "next": verify.MEANINGS[kind][1],
            }
            for (table, kind), some in kinds.items()
        ],
    }  # fmt: skip


async def look_closed(config: Config) -> dict[str, Any]:
    """The store of a node that does not run, however damaged it is. Raises a `NodeError`."""
    held = lock(config.data_path)
    try:
        node_keys = open_keys(config.data_path)
        runner = open_runner(config.database_url)
        try:

            async def read(work: Callable[..., Any], *args: Any) -> Any:
                return await runner.read(lambda connection: work(connection, *args))

            try:
                found = await read(version)
            except Exception as error:
                return await _broken(error)
            if found != HEAD:
                name = store_name(config.database_url)
                raise (StoreUnusable if found is None else NewerDatabase)(
                    f"the store {name} has schema {found or 'none'}, this version of Roost knows {HEAD}; "
                    "start the node once with its own version"
                )
            return await look(read, node_keys.identity.node, encode_chain(node_keys.chain))
        finally:
            with contextlib.suppress(Exception):  # of a file that is no database
                await runner.close()
    finally:
        os.close(held)


async def _broken(error: Exception) -> dict[str, Any]:
    async def read(work: Callable[..., Any], *args: Any) -> Any:
        raise error

    return await look(read, b"", b"")


async def _verify(node: "Node", args: dict[str, Any]) -> Any:
    return await look(node.store.read, node.us.node, encode_chain(node.us.chain))


def _id(held: rows.Quarantine) -> str:
    return to_text(held.event)[:16]


async def _list(node: "Node", args: dict[str, Any]) -> Any:
    return [
        {
            "id": _id(held), "from": node.directory.name_of(held.peer), "log": to_text(held.log), "seq": held.seq,
            "at": held.at_ms, "tries": held.tries, "bytes": len(held.segment), "error": held.error,
        }
        for held in await node.store.read(reads.quarantined)
    ]  # fmt: skip


def _release(replay: bool) -> "Callable[[Node, dict[str, Any]], Awaitable[Any]]":
    async def release(node: "Node", args: dict[str, Any]) -> Any:
        wanted = args["id"]
        held = [q for q in await node.store.read(reads.quarantined) if wanted in ("all", _id(q))]
        if not held and wanted != "all":
            raise ApiError("not_found", "it is not in quarantine; `roost quarantine list` shows what is")
        done, refused = [], []
        for q in held:
            try:
                await node.store.submit(Release(q.log, q.seq, replay))
                done.append(_id(q))
            except ApiError as error:
                if wanted != "all":
                    raise
                refused.append({"id": _id(q), "reason": error.message})
        return {"done": done, "refused": refused}

    return release


OPERATIONS: "dict[str, Callable[[Node, dict[str, Any]], Awaitable[Any]]]" = {
    "verify": _verify,
    "quarantine.list": _list,
    "quarantine.replay": _release(True),
    "quarantine.drop": _release(False),
}
