"""Commands of a person: log in, devices, history, states, requests, and why a message is where it is."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import App, Parameter

from federation.identity import NodeLink
from federation.ids import Address, check_local_name
from node.cli import output
from node.cli.outcome import CliError, Exit
from node.cli.session import Json, PasswordStdin, Profile, load_config, opened, password
from node.cli.shapes import history_object, history_text

MessageId = Annotated[str, Parameter(help="A message id: `send` and `history --json` print it.")]
Target = Annotated[str, Parameter(name="ID", help="The other's address, or a conversation id.")]
Who = Annotated[str, Parameter(name="WHO", help="An address, or a node's name for all its users.")]
AsProfile = Annotated[str | None, Parameter(name="--profile", help="Speak for yourself.")]
AsNode = Annotated[
    Path | None, Parameter(name=["-c", "--config"], help="Speak for the node of this node.yaml, as its administrator.")
]
DeviceId = Annotated[str, Parameter(help="A device id, as `roost devices list` prints it.")]
DeviceName = Annotated[str, Parameter(name="--device-name", help="How your other devices show this one.")]


def add_to(app: App) -> None:
    alone: tuple[Callable[..., Any], ...] = (
        login,
        register,
        logout,
        profile,
        history,
        state,
        requests,
        accept,
        decline,
        block,
        unblock,
        blocks,
        typing,
        why,
    )
    for command in alone:
        app.command(command)
    devices = App(name="devices", help="Where this account is logged in.")
    grouped: tuple[Callable[..., Any], ...] = (devices_list, devices_rename, devices_revoke)
    for command in grouped:
        devices.command(command, name=command.__name__.removeprefix("devices_"))
    app.command(devices)


def _device_name(given: str) -> str:
    return (given or platform.node() or "command line")[:64]


async def login(
    address: Annotated[str, Parameter(name="NAME@NODE", help="The address of the account.")],
    /,
    *,
    node: Annotated[str, Parameter(help="The node's link, as `roost link` prints it, in quotes.")],
    profile: Profile,
    password_stdin: PasswordStdin = False,
    device_name: DeviceName = "",
    json: Json = False,
) -> None:
    """Make this machine a device of an account."""
    who, link = Address.parse(address), NodeLink.parse(node)
    if who.node != link.name:
        raise CliError(
            Exit.USAGE,
            "bad_address",
            f"{who} does not live on {link.name}",
            "give the link of their own node",
        )
    secret = password(password_stdin)
    from node.client import Client

    client = await Client.login(profile, str(who), str(link), secret, _device_name(device_name))
    await _say_hello(client, profile, json)


async def register(
    invite: Annotated[str, Parameter(help="As `roost invite new` printed it, in quotes.")],
    /,
    *,
    profile: Profile,
    name: Annotated[str, Parameter(help="The name you want, the part before the @; else the profile's.")] = "",
    password_stdin: PasswordStdin = False,
    device_name: DeviceName = "",
    json: Json = False,
) -> None:
    """Make an account with an invite, and this machine its first device."""
    from node.client import Client

    secret = password(password_stdin, confirm=True)
    client = await Client.register(
        profile, invite, check_local_name(name or profile), secret, _device_name(device_name)
    )
    await _say_hello(client, profile, json)


async def _say_hello(client: Any, name: str, json: bool) -> None:
    try:
        if json:
            output.obj({"address": client.address, "device": client.device, "profile": name})
        else:
            output.line(f"logged in as {client.address}; this device is profile {name}")
    finally:
        await client.close()


async def logout(
    *,
    profile: Profile,
    forget: Annotated[
        bool, Parameter(name="--forget", negative="", help="Also if the node cannot be told, or was made anew.")
    ] = False,
    json: Json = False,
) -> None:
    """Revoke this device and forget the profile, with all that it keeps."""
    async with opened(profile) as client:
        device = client.device
        revoked = await client.logout(forget)
    if json:
        output.obj({"ok": True, "revoked": revoked})
    else:
        untold = f"; its node was not told: `roost devices revoke {device}` does that from another device"
        output.line(f"logged out {profile}" + ("" if revoked else untold))


async def profile(
    *,
    profile: Profile,
    name: Annotated[
        str | None, Parameter(help="A new display name, in the lists of your administrator; empty for none.")
    ] = None,
    requests: Annotated[
        Literal["strangers", "everyone"] | None, Parameter(help="Whose first message waits for your `accept`.")
    ] = None,
    presence: Annotated[
        Literal["contacts", "nobody"] | None, Parameter(help="Who sees that you are there, or type.")
    ] = None,
    json: Json = False,
) -> None:
    """Show your address and display name, or change what is given."""
    async with opened(profile) as client:
        if (name, requests, presence) != (None, None, None):
            await client.set_profile(name, requests, presence)
        shown = {"address": client.address, "display_name": await client.display_name()}
    output.show(shown, json)


async def devices_list(*, profile: Profile, json: Json = False) -> None:
    """List the devices of this account."""
    async with opened(profile) as client:
        devices = [
            {
                "device": d.device, "name": d.name, "created": d.created, "seen": d.seen,
                "revoked": d.revoked, "this": d.this,
            }
            for d in await client.devices()
        ]  # fmt: skip
    output.show(devices, json)


async def devices_rename(device: DeviceId, name: str, /, *, profile: Profile, json: Json = False) -> None:
    """Give a device another name."""
    async with opened(profile) as client:
        await client.rename_device(device, name)
    output.obj({"ok": True}) if json else output.line(f"renamed {device} to {name}")


async def devices_revoke(device: DeviceId, /, *, profile: Profile, json: Json = False) -> None:
    """Cut a device off at once."""
    async with opened(profile) as client:
        await client.revoke_device(device)
    output.obj({"ok": True}) if json else output.line(f"revoked {device}")


async def history(
    conversation: Annotated[str, Parameter(help="A conversation id, or somebody's address.")],
    /,
    *,
    profile: Profile,
    limit: Annotated[int, Parameter(help="The newest so many, oldest first.")] = 200,
    json: Json = False,
) -> None:
    """Print a conversation; if the node cannot say, what this device has of it."""
    if limit < 1:
        raise CliError(Exit.USAGE, "usage", "--limit is below 1", "give a number of messages")
    target = checked_target(conversation)
    from node.api import ApiError
    from node.client import Message, Unreachable

    def show(messages: list[Message]) -> None:
        for message in messages:
            output.obj(history_object(message)) if json else output.line(history_text(message))

    async with opened(profile) as client:
        try:
            show(await client.history(target, limit))
        except (ApiError, Unreachable):  # the node may refuse the very address that a message here waits for
            show(await client.messages(target, limit=limit))
            raise


async def state(id: MessageId, /, *, profile: Profile, json: Json = False) -> None:
    """Print how far a message got, for each recipient."""
    async with opened(profile) as client:
        states = await client.state(id)
    to = [{"address": r.address, "state": r.state, "at": r.at, "reason": r.reason} for r in states.to]
    if json:
        output.obj({"id": id, "to": to})
    else:
        output.table(to)


async def requests(*, profile: Profile, json: Json = False) -> None:
    """List people who wrote first and wait for an answer."""
    async with opened(profile) as client:
        rows = [{"conversation": c.id, "from": c.title} for c in await client.requests()]
    output.show(rows, json)


async def accept(id: Target, /, *, profile: Profile, json: Json = False) -> None:
    """Take up a request; the other then sees receipts."""
    target = checked_target(id)
    async with opened(profile) as client:
        await client.accept(target)
    output.obj({"ok": True}) if json else output.line("accepted")


async def decline(id: Target, /, *, profile: Profile, json: Json = False) -> None:
    """Turn a request down; the other is not told."""
    target = checked_target(id)
    async with opened(profile) as client:
        await client.decline(target)
    output.obj({"ok": True}) if json else output.line("declined")


async def block(
    who: Who,
    /,
    *,
    profile: AsProfile = None,
    config: AsNode = None,
    json: Json = False,
) -> None:
    """Take nothing from somebody any more, and send nothing to them: no message, no receipt, no sign of life.

    With -c: one user of another node, for everybody on this one.
    """
    await _block("block", who, profile, config)
    output.obj({"ok": True}) if json else output.line(f"blocked {who}")


async def unblock(
    who: Who,
    /,
    *,
    profile: AsProfile = None,
    config: AsNode = None,
    json: Json = False,
) -> None:
    """Take a block back. What was refused meanwhile stays refused."""
    await _block("unblock", who, profile, config)
    output.obj({"ok": True}) if json else output.line(f"unblocked {who}")


async def _block(how: Literal["block", "unblock"], who: str, profile: str | None, config: Path | None) -> None:
    target = checked_target(who)
    if _is_node(how, profile, config):
        from node.cli.node_commands import ask

        await ask(load_config(config or Path(), []), {"block": "block.add", "unblock": "block.remove"}[how], who=target)
        return
    async with opened(profile or "") as client:
        await (client.block(target) if how == "block" else client.unblock(target))


async def blocks(*, profile: AsProfile = None, config: AsNode = None, json: Json = False) -> None:
    """List whom you blocked; with -c, whom this node blocks for all its users beside whole nodes."""
    if _is_node("blocks", profile, config):
        from node.cli.node_commands import ask

        output.show(await ask(load_config(config or Path(), []), "block.list"), json)
        return
    async with opened(profile or "") as client:
        output.show([{"who": b.who, "since": b.since} for b in await client.blocked()], json)


async def typing(
    id: Target,
    /,
    *,
    off: Annotated[bool, Parameter(name="--off", negative="", help="You do not type any more.")] = False,
    profile: Profile,
    json: Json = False,
) -> None:
    """Show the other one that you type; they forget it after six seconds."""
    target = checked_target(id)
    async with opened(profile) as client:
        await client.typing(target, not off)
    output.obj({"ok": True}) if json else output.line("not typing" if off else "typing")


def _is_node(command: str, profile: str | None, config: Path | None) -> bool:
    """Whether the administrator speaks; one of the two is given."""
    if (config is None) == (profile is None):
        words = f"`{command}` asks a node or a profile"
        raise CliError(Exit.USAGE, "usage", words, "give either -c FILE or --profile P")
    return config is not None


async def why(
    id: MessageId,
    /,
    *,
    config: AsNode = None,
    profile: AsProfile = None,
    json: Json = False,
) -> None:
    """Tell a message's way: every hop, acknowledgement, reason and next retry known here."""
    if _is_node("why", profile, config):
        from node.cli.node_commands import ask

        answer = await ask(load_config(config or Path(), []), "why", event=id)
    else:
        async with opened(profile or "") as client:
            answer = msgspec.to_builtins(await client.why(id))
    hops = [{"at": h.get("at", 0), "what": h["what"], "detail": h.get("detail", "")} for h in answer["hops"]]
    if json:
        output.obj({"id": id, "summary": answer.get("summary", ""), "hops": hops})
        return
    output.line(output.safe(answer.get("summary", id)))
    for hop in hops:
        what, detail = output.safe(hop["what"]), output.safe(hop["detail"])
        output.line(f"{output.clock(hop['at']):<23}  {what}  {detail}".rstrip())


def checked_target(text: str) -> str:
    """An address in its one spelling, or anything without an @ as a conversation id."""
    return str(Address.parse(text)) if "@" in text else text
