"""Commands of the administrator about damage: look at the whole store, and what is in quarantine."""

from typing import Annotated

from cyclopts import App, Parameter

from node.cli import output
from node.cli.node_commands import ask
from node.cli.outcome import Exit
from node.cli.session import ConfigFile, Json, load_config

ItemId = Annotated[str, Parameter(help="The id that `roost quarantine list` prints, or `all`.")]


def add_to(app: App) -> None:
    app.command(verify)
    group = App(name="quarantine", help="Events of other nodes that this node could not process.")
    group.command(quarantine_list, name="list")
    group.command(quarantine_replay, name="replay")
    group.command(quarantine_drop, name="drop")
    app.command(group)


async def verify(*, config: ConfigFile, json: Json = False) -> int:
    """Look at the whole store: every hash, signature and number. Ends with 6 if anything is damaged."""
    found = await ask(load_config(config, []), "verify")
    if json:
        output.obj(found)
    else:
        for finding in found["findings"]:
            examples = ", ".join(map(output.safe, finding["examples"]))
            output.line(f"{finding['table']}: {finding['count']} x {finding['kind']} ({examples})")
            output.line(f"  {finding['means']}. Next: {finding['next']}.")
        output.line(f"{found['rows']} rows: " + ("nothing is damaged" if found["ok"] else "damaged"))
    return Exit.REACHED if found["ok"] else Exit.STORE


async def quarantine_list(*, config: ConfigFile, json: Json = False) -> None:
    """What is in quarantine, and why."""
    output.show(await ask(load_config(config, []), "quarantine.list"), json)


async def quarantine_replay(id: ItemId, *, config: ConfigFile, json: Json = False) -> int:
    """Try again to process one, after what was wrong is mended; it arrives like any other."""
    return await _release(config, "quarantine.replay", id, "processed", json)


async def quarantine_drop(id: ItemId, *, config: ConfigFile, json: Json = False) -> int:
    """Forget one for good."""
    return await _release(config, "quarantine.drop", id, "dropped", json)


async def _release(config: ConfigFile, op: str, id: str, what: str, json: bool) -> int:
    answer = await ask(load_config(config, []), op, id=id)
    if json:
        output.obj(answer)
    else:
        output.line(f"{what} {len(answer['done'])}")
        for refused in answer["refused"]:
            output.line(f"{refused['id']} stays: {output.safe(refused['reason'])}")
    return Exit.REFUSED if answer["refused"] else Exit.REACHED
