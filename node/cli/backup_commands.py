"""Commands against the loss of a disk: back a node up, restore it, and go on from the copy."""

from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from node.cli import output
from node.cli.node_commands import ask
from node.cli.outcome import CliError, Exit
from node.cli.session import ConfigFile, Json, load_config


def add_to(app: App) -> None:
    app.command(backup)
    app.command(restore)


async def backup(
    file: Annotated[Path, Parameter(name="FILE", help="A new file; it will hold the node's private keys.")],
    *,
    config: ConfigFile,
    json: Json = False,
) -> None:
    """Write store, key and config of a node, running or not, into one file, and check it."""
    from node import config_file

    settings = load_config(config, [])
    text = config_file.render(msgspec.structs.replace(settings, data_dir="data"))
    done = await ask(settings, "backup", file=str(file.absolute()), text=text)
    words = ", ".join(f"{count} {what}" for what, count in done["counts"].items())
    output.obj(done) if json else output.line(f"backed up {done['name']} to {file}: {words}; keep it secret")


async def restore(
    file: Annotated[Path | None, Parameter(name="FILE", help="A file that `roost backup` wrote.")] = None,
    folder: Annotated[Path | None, Parameter(name="DIR", help="A new or empty folder for the node.")] = None,
    *,
    accept: Annotated[
        bool, Parameter(name="--accept", negative="", help="Go on from the copy; what is newer comes from peers.")
    ] = False,
    config: Annotated[Path | None, Parameter(name=["-c", "--config"], help="With --accept: its node.yaml.")] = None,
    json: Json = False,
) -> None:
    """Unpack a backup (FILE DIR), or let a node that is held go on (--accept -c FILE).

    A restored node is held: it sends nothing until --accept. Then every login and unused invite of it ends, and peers
    give back what they have of it.
    """
    if accept and config is not None and file is None:
        done = await ask(load_config(config, []), "restore.accept")
        words = f"{done['name']} goes on from the copy; its users log in again, and peers give back what they have"
        output.obj(done) if json else output.line(words)
    elif file is not None and folder is not None and not accept and config is None:
        from node.backup import unpack

        manifest = unpack(file, folder)
        output.obj(
            {"name": manifest.name, "config": str(folder / "node.yaml"), "made": manifest.made_ms,
             "counts": manifest.counts}
        ) if json else output.line(
            f"restored {manifest.name} to {folder}: make sure that no other copy runs, then "
            f"`roost restore --accept -c {folder / 'node.yaml'}` and `roost serve -c {folder / 'node.yaml'}`"
        )  # fmt: skip
    else:
        raise CliError(
            Exit.USAGE, "usage", "restore takes FILE and DIR, or --accept and -c FILE", "`roost restore --help`"
        )
