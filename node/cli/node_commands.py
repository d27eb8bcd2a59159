"""Commands of the administrator: make, run and inspect a node; its users, invites and peers."""

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import App, Parameter

from federation.identity import NodeLink, split_host_port
from federation.ids import check_domain, check_local_name
from node.cli import output
from node.cli.outcome import CliError, Exit
from node.cli.session import ConfigFile, Json, PasswordStdin, Sets, load_config, password

if TYPE_CHECKING:
    from node.config import Config
    from node.node import Node

DAY_S = 86_400
STATUS_FOR_PROGRAMS = ("incarnation", "store")  # says nothing to people

PeerLink = Annotated[str, Parameter(help="As `roost link` prints it on the other node, in quotes.")]
PeerName = Annotated[str, Parameter(help="Its name or id, as `roost peer list` prints them.")]
OnePeer = Annotated[str, Parameter(help="Only this node, by name or id.")]
Yes = Annotated[bool, Parameter(name="--yes", negative="", help="Do not ask for the name again.")]
InviteId = Annotated[str, Parameter(help="The id that `roost invite list` prints.")]


def add_to(app: App) -> None:
    alone: tuple[Callable[..., Any], ...] = (init, serve, link, check, doctor, status)
    for command in alone:
        app.command(command)
    groups: tuple[tuple[str, str, tuple[Callable[..., Any], ...]], ...] = (
        (
            "user",
            "Accounts of this node.",
            (user_add, user_list, user_disable, user_enable, user_delete, user_passwd),
        ),
        ("invite", "Invites to register.", (invite_new, invite_list, invite_revoke)),
        ("peer", "Other nodes.", (peer_add, peer_list, peer_accept, peer_block, peer_remove)),
        ("queue", "What waits for other nodes.", (queue_list, queue_flush, queue_expire)),
    )
    for name, subject, commands in groups:
        group = App(name=name, help=subject)
        for command in commands:
            group.command(command, name=command.__name__.removeprefix(f"{name}_"))
        app.command(group)


# --- the node itself ----------------------------------------------------------------------------------------
def init(
    folder: Annotated[Path, Parameter(name="DIR", help="A new folder for this node.")],
    /,
    *,
    name: Annotated[str, Parameter(help="The node's name, the part after the @ of addresses.")],
    listen: Annotated[
        str,
        Parameter(help="HOST:PORT for one UDP and one TCP port; with 0.0.0.0, --set advertise=[HOST:PORT] too."),
    ],
    sets: Sets = [],  # noqa: B006 - cyclopts shows it as the default and never changes it
    json: Json = False,
) -> None:
    """Make a new node: DIR/node.yaml, its key, and a folder for its data."""
    file = make_node(folder, name, listen, sets)
    settings = load_config(file, [])
    warnings = [*settings.warnings, *_taken(settings)]
    if json:
        output.obj({"name": name, "config": str(file), "warnings": warnings})
    else:
        output.line(f"made {name}: run it with `roost serve -c {file}`")
    for warning in warnings if not json else []:
        output.line(output.safe(f"warning: {warning}"))


def _taken(config: "Config") -> list[str]:
    """What is said about the port when another program has it now."""
    if config.listen_at is None or config.listen_at[1] == 0:
        return []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            family, _, _, _, where = socket.getaddrinfo(*config.listen_at, type=kind)[0]
            with socket.socket(family, kind) as probe:
                if kind == socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an old connection is no program
                probe.bind(where)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                port = f"another program listens on {config.listen} now"
                return [f"{port}: stop it before this node is run, or write another port into the file"]
    return []


def make_node(folder: Path, name: str, listen: str, sets: list[str]) -> Path:
    """Writes the config last, so that a folder with a node.yaml is always a whole node."""
    from node import config_file, keys

    check_domain(name)
    split_host_port(listen)
    file = folder / "node.yaml"
    if file.exists():
        raise CliError(Exit.REFUSED, "exists", f"{file} exists already", "choose another folder; nothing was changed")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = folder / ".node.yaml.new"
    try:
        draft.write_text(f"name: {name}\nlisten: {_quoted(listen)}\ndata_dir: data\n")
        config = config_file.load(draft, sets)
        if config.data_path == (folder / "data").resolve():
            config = msgspec.structs.replace(config, data_dir="data")  # the whole folder may move
        draft.write_text(config_file.render(config))
        keys.create(folder / config.data_dir)
        draft.rename(file)
    finally:
        draft.unlink(missing_ok=True)
    return file


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()  # a JSON string is a YAML string


async def serve(*, config: ConfigFile, sets: Sets = []) -> int:  # noqa: B006
    """Run the node in the foreground until SIGTERM or Ctrl+C.

    Prints `ready NAME LINK` when it runs, or `held NAME REASON` when its store is an old copy: then it sends and takes
    nothing until `roost restore --accept`.
    """
    from node.node import Node

    settings = load_config(config, sets)
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(output.LogLines())
    logging.basicConfig(level=settings.log.level.upper(), handlers=[lines])
    for chatty in ("alembic", "quic", "asyncio", "aiohttp"):  # libraries' own news is not the operator's
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for warning in settings.warnings:
        logging.getLogger("roost").warning("%s", warning)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Node.open(settings) as node:
        told = asyncio.ensure_future(_tell(node))
        try:
            await _until(stop, node)
        finally:
            told.cancel()
    return Exit.REACHED


async def _tell(node: "Node") -> None:
    """`ready NAME LINK`, or `held NAME REASON` while the store is an old copy; again when it changes."""
    while True:
        node.changed.clear()
        held = output.safe(node.held)
        output.line(f"held {node.us.name} {held}" if held else f"ready {node.us.name} {node.link}")
        await node.changed.wait()


async def _until(stop: asyncio.Event, node: Any) -> None:
    """Returns when asked to stop; raises what made the node fail."""
    asked, ended = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(node.stopped())
    try:
        await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            ended.result()
        if node.failed.done() and not node.failed.cancelled():
            node.failed.result()
    finally:
        asked.cancel()
        ended.cancel()
        await asyncio.gather(asked, ended, return_exceptions=True)


async def ask(config: "Config", op: str, **args: Any) -> Any:
    """One admin operation, as plain JSON-like values."""
    from node import admin

    return msgspec.to_builtins(await admin.call(config, op, args))


async def _run(file: Path, op: str, json: bool, done: str = "", **args: Any) -> None:
    """An operation and its answer: records as they are, else one sentence for people."""
    answer = await ask(load_config(file, []), op, **args)
    if answer is None or answer == {} or (done and not json):
        output.obj({"ok": True}) if json else output.line(done)
    else:
        output.show(answer, json)


async def link(*, config: ConfigFile, json: Json = False) -> None:
    """Print the node link that other administrators and new devices need."""
    answer = await ask(load_config(config, []), "link")
    text = answer["link"] if isinstance(answer, dict) else str(answer)
    output.obj({"link": text}) if json else output.line(text)


async def check(*, config: ConfigFile, sets: Sets = [], json: Json = False) -> int:  # noqa: B006
    """Look for mistakes in the config, the key's permissions and the store."""
    settings = load_config(config, sets)
    answer = await ask(settings, "check")
    problems = answer.get("problems", []) if isinstance(answer, dict) else answer or []
    if json:
        output.obj({"ok": not problems, "problems": problems, "warnings": list(settings.warnings)})
    elif not problems:
        output.line(f"{config}: no mistakes found")
    for problem in problems if not json else []:
        output.line(output.safe(problem.get("message", problem) if isinstance(problem, dict) else problem))
    for warning in settings.warnings if not json else []:
        output.line(output.safe(f"warning: {warning}"))
    return Exit.STORE if problems else Exit.REACHED


async def doctor(*, config: ConfigFile, json: Json = False) -> int:
    """Look for what keeps the node from working well: ports, addresses, peers, clock, disk, files, weak settings."""
    answer = await ask(load_config(config, []), "doctor", file=str(config.resolve()))
    if json:
        output.obj(answer)
    for finding in answer["findings"] if not json else []:
        output.line(output.safe(f"{finding['check']}: {finding['problem']}. Fix: {finding['fix']}"))
    if not json and answer["ok"]:
        output.line(f"nothing to put right: looked at {', '.join(answer['checked'])}")
    return Exit.REACHED if answer["ok"] else Exit.REFUSED


async def status(*, config: ConfigFile, json: Json = False) -> None:
    """What the node does now: its links to other nodes, what waits, how many users and clients."""
    answer = await ask(load_config(config, []), "status")
    output.show(answer if json else {name: answer[name] for name in answer if name not in STATUS_FOR_PROGRAMS}, json)


# --- users --------------------------------------------------------------------------------------------------
async def user_add(
    name: str, /, *, config: ConfigFile, password_stdin: PasswordStdin = False, json: Json = False
) -> None:
    """Make an account."""
    secret = password(password_stdin, confirm=True)
    await _run(config, "user.add", json, f"added {name}", name=check_local_name(name), password=secret)


async def user_list(*, config: ConfigFile, json: Json = False) -> None:
    """List the accounts."""
    await _run(config, "user.list", json)


async def user_disable(name: str, /, *, config: ConfigFile, json: Json = False) -> None:
    """Close an account until it is enabled again; its devices are cut off."""
    await _run(config, "user.disable", json, f"disabled {name}", name=check_local_name(name))


async def user_enable(name: str, /, *, config: ConfigFile, json: Json = False) -> None:
    """Open a disabled account again."""
    await _run(config, "user.enable", json, f"enabled {name}", name=check_local_name(name))


async def user_delete(
    name: str,
    /,
    *,
    config: ConfigFile,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete an account for ever; its name stays reserved."""
    check_local_name(name)
    if not yes and sys.stdin.isatty() and _typed(f"Type {name} to delete it for ever: ") != name:
        raise CliError(Exit.REFUSED, "not_confirmed", "the name does not agree; nothing was deleted", "try again")
    await _run(config, "user.delete", json, f"deleted {name}; the name stays reserved", name=name)


def _typed(prompt: str) -> str:
    return input(prompt).strip()


async def user_passwd(
    name: str,
    /,
    *,
    config: ConfigFile,
    password_stdin: PasswordStdin = False,
    keep: Annotated[bool, Parameter(name="--keep-devices", negative="", help="Nobody has to log in again.")] = False,
    json: Json = False,
) -> None:
    """Set a new password. Every device of the account is logged out, as whoever knew the old one may have one."""
    secret = password(password_stdin, confirm=True)
    done = f"new password for {name}" + ("" if keep else "; its devices have to log in again")
    await _run(config, "user.passwd", json, done, name=check_local_name(name), password=secret, keep_devices=keep)


# --- invites ------------------------------------------------------------------------------------------------
async def invite_new(
    *,
    config: ConfigFile,
    days: Annotated[float, Parameter(help="How long it can be used.")] = 7,
    json: Json = False,
) -> None:
    """Print an invite: who has it can make one account here."""
    if not 0 < days <= 3650:
        raise CliError(Exit.USAGE, "usage", f"an invite cannot last {days:g} days", "give --days from 0 to 3650")
    answer = await ask(load_config(config, []), "invite.new", expires_s=max(int(days * DAY_S), 1))
    output.show(answer, json) if json or not isinstance(answer, dict) else output.line(str(answer["invite"]))


async def invite_list(*, config: ConfigFile, json: Json = False) -> None:
    """List invites; the secret part is shown only once, by `new`."""
    await _run(config, "invite.list", json)


async def invite_revoke(id: InviteId, /, *, config: ConfigFile, json: Json = False) -> None:
    """Make an invite worthless."""
    await _run(config, "invite.revoke", json, f"revoked {id}", id=id)


# --- peers --------------------------------------------------------------------------------------------------
async def peer_add(link: PeerLink, /, *, config: ConfigFile, json: Json = False) -> None:
    """Accept a node by the link its administrator gave."""
    parsed = NodeLink.parse(link)
    await _run(config, "peer.add", json, f"added {parsed.name}", link=str(parsed))


async def peer_list(*, config: ConfigFile, json: Json = False) -> None:
    """List known nodes, and those that knock."""
    await _run(config, "peer.list", json)


async def peer_accept(node: PeerName, /, *, config: ConfigFile, json: Json = False) -> None:
    """Let a node that knocked in."""
    await _run(config, "peer.accept", json, f"accepted {node}", node=node)


async def peer_block(node: PeerName, /, *, config: ConfigFile, json: Json = False) -> None:
    """Refuse a node."""
    await _run(config, "peer.block", json, f"blocked {node}", node=node)


async def peer_remove(node: PeerName, /, *, config: ConfigFile, json: Json = False) -> None:
    """Forget a node."""
    await _run(config, "peer.remove", json, f"removed {node}", node=node)


# --- queues -------------------------------------------------------------------------------------------------
async def queue_list(*, config: ConfigFile, peer: OnePeer = "", json: Json = False) -> None:
    """List for each node how much waits for it, since when, why, and when it is tried again."""
    found = await ask(load_config(config, []), "queue.list", peer=peer)
    if not json:
        for record in found:
            record["next try"] = "-" if (wait := record.pop("next_s")) is None else f"in {wait} s" if wait else "now"
            record["reason"] = record.pop("reason")  # the longest is last
    output.show(found, json)


async def queue_flush(*, config: ConfigFile, peer: OnePeer = "", json: Json = False) -> None:
    """Try now what waits, for one node or for all."""
    answer = await ask(load_config(config, []), "queue.flush", peer=peer)
    flushed = ", ".join(answer["flushed"])
    said = f"trying {flushed} now" if flushed else "nothing to try: nothing waits, or the node does not run"
    output.obj(answer) if json else output.line(output.safe(said))


async def queue_expire(
    *,
    config: ConfigFile,
    peer: PeerName,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Give up the messages that wait for a node: their senders see them failed."""
    if not yes and sys.stdin.isatty() and _typed(f"Type {output.safe(peer)} to give up what waits for it: ") != peer:
        raise CliError(Exit.REFUSED, "not_confirmed", "the name does not agree; nothing was given up", "try again")
    answer = await ask(load_config(config, []), "queue.expire", peer=peer)
    left = f"; {answer['left']} other events still wait, such as receipts" if answer["left"] else ""
    said = f"gave up {answer['failed']} messages for {answer['peer']}; their senders see it{left}"
    output.obj(answer) if json else output.line(output.safe(said))
