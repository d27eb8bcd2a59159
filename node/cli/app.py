"""The command `roost`: parses, runs, and turns whatever happens into an exit code and one readable line."""

import os
import sys
from collections.abc import Sequence
from importlib import metadata

from cyclopts import App, CycloptsError, MissingArgumentError

from node.cli import (
    account_commands,
    act_commands,
    backup_commands,
    demo,
    node_commands,
    pipe,
    repair_commands,
    send,
    tail,
)
from node.cli.outcome import Exit, Problem, explain
from node.cli.output import report


def _version() -> str:
    try:
        return metadata.version("roost")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def build() -> App:
    """The whole surface; a command is a plain function, so tests can also call it without parsing."""
    app = App(
        name="roost",
        help="A federated chat home server: run a node, write to people, read what they write.",
        version=_version,
        result_action="return_value",
    )
    groups = (node_commands, backup_commands, repair_commands, account_commands, send, act_commands, tail, pipe, demo)
    for commands in groups:
        commands.add_to(app)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; never lets a traceback out."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    json = "--json" in tokens[: tokens.index("--")] if "--" in tokens else "--json" in tokens
    for token in tokens:
        if any("\udc80" <= char <= "\udcff" for char in token):  # how Python shows bytes that are no text
            report(
                Problem(Exit.USAGE, "bad_text", f"an argument is not UTF-8: {token[:40]!a}", "convert it first"), json
            )
            return Exit.USAGE
    try:
        result = build()(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        report(_usage(error), json)
        return Exit.USAGE
    except BrokenPipeError:  # the reader of our output went away: that is its choice, not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing may fail in the flush at exit
        return Exit.UNKNOWN
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else Exit.REACHED
    except BaseException as error:
        problem = explain(error)
        report(problem, json)
        return problem.exit
    return int(result) if isinstance(result, int) else Exit.REACHED


def _usage(error: CycloptsError) -> Problem:
    chain = " ".join(["roost", *(error.command_chain or ())])
    words = " ".join(str(error).split())
    if isinstance(error, MissingArgumentError) and error.argument is not None and error.keyword is None:
        words = f"`{chain}` needs {error.argument.name}"
    return Problem(Exit.USAGE, "usage", words, f"`{chain} --help` shows how it is used")
