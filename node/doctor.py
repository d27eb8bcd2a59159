"""`roost doctor`: looks at what goes wrong on real machines, and says what to do about each thing it finds."""

import asyncio
import os
import stat
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from federation import wire
from federation.identity import split_host_port
from federation.ports import ChannelClosed
from federation.reach import reach_of
from node import keys
from node.config import DATABASE, SOCKET
from node.queues import why_waiting
from node.storage import waits

if TYPE_CHECKING:
    from federation.running import Running
    from node.node import Node

ANSWER_S = 3.0  # for a port of our own
PROBE_S = 10.0  # for a peer, which calls back meanwhile
ASKED_AT_ONCE = 16  # peers
SKEW_MS = 300_000  # of a peer's clock
CHECKS = ("settings", "files", "disk", "clock", "ports", "addresses", "peers")
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Finding(NamedTuple):
    """Something to be put right."""

    check: str  # one of CHECKS
    problem: str
    fix: str


async def examine(node: "Node", args: dict[str, Any]) -> dict[str, Any]:
    """All checks; `file` in the arguments is the path of the node's settings."""
    found = [*_settings(node), *_files(node, str(args.get("file", ""))), *_alarms(node)]
    found += await _ports(node)
    found += await _addresses(node)
    found += await _peers(node)
    found += await _from_outside(node)
    return {"ok": not found, "checked": CHECKS, "findings": [finding._asdict() for finding in found]}


def _settings(node: "Node") -> Iterator[Finding]:
    config = node.config
    for warning in config.warnings:
        problem, _, fix = warning.partition(": ")
        yield Finding("settings", problem, fix)
    if config.federation.policy == "open":
        yield Finding(
            "settings",
            "any node that calls may write to the people here",
            "set federation.policy to allowlist, and accept the nodes that you know",
        )
    if config.tls.behind_proxy and not config.tls.proxy_key_hashes:
        yield Finding(
            "settings",
            "clients cannot tell the proxy from somebody between",
            "set tls.proxy_key_hashes to the SHA-256 of each public key that the proxy shows",
        )
    if config.log.level == "debug":
        yield Finding("settings", "the log says more than is needed, such as addresses", "set log.level to info")


def _files(node: "Node", file: str) -> Iterator[Finding]:
    folder = node.config.data_path
    private = [folder / keys.FILE, folder / DATABASE, folder / f"{DATABASE}-wal", folder / SOCKET]
    for path in private:
        if (mode := _mode(path)) is not None and mode & 0o077:
            yield Finding("files", f"others may open {path} (mode {mode:o})", f"chmod 600 {path}")
    for path in (folder, *((Path(file),) if file else ())):
        if (mode := _mode(path)) is not None and mode & 0o022:
            yield Finding("files", f"others may change {path} (mode {mode:o})", f"chmod go-w {path}")
    if file and node.config.database is not None and (mode := _mode(Path(file))) is not None and mode & 0o077:
        yield Finding("files", f"others may read the database's password in {file}", f"chmod 600 {file}")


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None


def _alarms(node: "Node") -> Iterator[Finding]:
    """What the node watches by itself."""
    node.upkeep.look()
    fixes = {"disk": "make room on the disk of the data folder", "clock": "look at the clock, then restart the node"}
    for name, words in node.upkeep.alarms.items():
        yield Finding(name if name in CHECKS else "peers", words, fixes.get(name, "see the node's log"))
    try:
        free, reserve, _ = node.upkeep.disk()
    except OSError as error:
        yield Finding("disk", f"the disk of the data folder cannot be looked at: {error.strerror}", "check the disk")
        return
    if "disk" not in node.upkeep.alarms and free < 4 * reserve:
        problem = f"{free >> 20} MiB are free, and below {reserve >> 20} MiB the node takes nothing new"
        yield Finding("disk", problem, "make room on the disk of the data folder")


async def _ports(node: "Node") -> list[Finding]:
    """Whether what the node listens on answers, as seen from this machine."""
    if node.doors is None:
        fix = "`roost serve -c FILE` runs it; the checks of ports, addresses and peers need that"
        return [Finding("ports", "the node does not run", fix)]
    if node.config.listen_at is None:
        return []
    host, port = node.config.listen_at
    where = WILDCARDS.get(host, host), port
    found = []
    try:
        channel = await node.doors.udp.dial(where, wire.ALPN, ANSWER_S, None)
        await channel.close("only looked")
    except (ChannelClosed, OSError) as error:
        found.append(Finding("ports", f"UDP port {port} does not answer on this machine: {error}", _FIREWALL))
    try:
        async with asyncio.timeout(ANSWER_S):
            _, writer = await asyncio.open_connection(*where)
        writer.close()
    except (TimeoutError, OSError) as error:
        words = str(error) or f"no answer in {ANSWER_S:g} s"
        found.append(Finding("ports", f"TCP port {port} does not answer on this machine: {words}", _FIREWALL))
    return found


_FIREWALL = "look at the firewall of this machine, then restart the node"


async def _addresses(node: "Node") -> list[Finding]:
    """Whether the addresses in our link can lead others here."""
    found = []
    for address in node.us.addresses if node.doors is not None else ():
        host, port = split_host_port(address)
        try:
            numbers = [host] if _is_number(host) else await _resolved(host, port)
        except OSError as error:
            words = error.strerror or str(error)
            fix = "correct `advertise`, or the name's entry in the DNS"
            found.append(
                Finding("addresses", f"the name in {address}, which our link gives, is not found: {words}", fix)
            )
            continue
        if node.config.listen_at is not None and host in WILDCARDS:
            continue  # told as a setting
        reaches = {reach_of(number) for number in numbers}
        if reaches <= {"loopback", None}:
            fix = "set `advertise` to an address that others can call, unless all nodes are on this machine"
            found.append(Finding("addresses", f"{address}, which our link gives, leads to this machine only", fix))
    return found


def _is_number(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


async def _resolved(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in await asyncio.get_running_loop().getaddrinfo(host, port)]


async def _peers(node: "Node") -> list[Finding]:
    """Links that are down, nodes that wait for an answer of ours, an old copy that waits for its acceptance."""
    found = []
    if node.held:
        found.append(Finding("peers", f"the node sends nothing: {node.held}", "`roost restore --accept -c FILE`"))
    waiting = await node.store.read(waits.waiting)
    for peer in node.directory.peers.values() if node.doors is not None else ():
        running, name = node.service.links.get(peer.node), node.directory.name_of(peer.node)
        if peer.state == "pending":
            fix = f"`roost peer accept {name}` or `roost peer block {name}`"
            found.append(Finding("peers", f"{name} asks to be accepted", fix))
        elif peer.state == "accepted" and (running is None or not running.state.up) and not node.held:
            events = waiting[peer.node].events if peer.node in waiting else 0
            much = f"; {events} events wait for it" if events else ""
            fix = "ask its administrator whether it runs, accepts this node, and where it is; see `roost peer list`"
            found.append(Finding("peers", f"no link to {name}: {why_waiting(node, peer.node)[0]}{much}", fix))
    return found


async def _from_outside(node: "Node") -> list[Finding]:
    """What peers say: the time there, and whether they can call what our link gives (PROTOCOL.md 5.13)."""
    up = [running for running in node.service.links.values() if running.state.up][:ASKED_AT_ONCE]
    found, failed, reached = [], dict[str, list[str]](), set[str]()
    for name, ahead_ms, calls in filter(None, await asyncio.gather(*(_probe(node, running) for running in up))):
        if abs(ahead_ms) > SKEW_MS:
            way = "ahead of" if ahead_ms > 0 else "behind"
            words = f"the clock of {name} is {abs(ahead_ms) // 1000} s {way} ours"
            found.append(Finding("clock", words, "set the clock that is wrong, and keep it right with NTP"))
        for address, reason in calls:
            reached |= {address} if not reason else set()
            failed.setdefault(address, []).append(f"{name} cannot call it ({reason})")
    for address, words_ in failed.items():
        if address not in reached:
            fix = "open UDP and TCP on the way there, in the firewall and the router, or correct `advertise`"
            found.append(Finding("addresses", f"{address}, which our link gives: {'; '.join(words_)}", fix))
    return found


async def _probe(node: "Node", running: "Running") -> tuple[str, int, tuple[tuple[str, str], ...]] | None:
    assert running.state.peer is not None
    try:
        async with asyncio.timeout(PROBE_S):
            ahead_ms, probed = await running.probe()
    except (ChannelClosed, TimeoutError):
        return None  # the link is going down, which the next look tells
    return node.directory.name_of(running.state.peer.node), ahead_ms, probed.calls
