"""A batch's working set: rows that were loaded, what commands change, what happens after commit.

A command declares the keys it needs; a key it finds out about only while deciding raises `Missing`, is loaded
with every other such key in one more round, and the batch is decided again. So statements per batch never grow
with the batch.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

from federation.wire import Receipt as WireReceipt
from node.api import ApiError
from node.core import rows
from node.core.context import Context

R = TypeVar("R", bound=tuple[Any, ...])
Key = tuple[type, tuple[Any, ...]]


class Missing(Exception):
    """Rows a decision turned out to need."""

    def __init__(self, *keys: Key) -> None:
        super().__init__(keys)
        self.keys = keys


class Hint(NamedTuple):
    """What moved, told after commit: carries no data (`mailbox` alice, `peer` id, `device` id, `peers`, `account`,
    `opened` conversation and user)."""

    kind: str
    key: str | bytes = ""


class Command(Protocol):
    """One thing to decide. Pure: the same view and context give the same changes."""

    def keys(self, context: Context) -> Iterable[Key]: ...

    def decide(self, view: "View", context: Context) -> Any:
        """The outcome; raises `ApiError` to refuse, which drops all its changes."""
        ...


class View:
    """Loaded rows below, changes of decided commands above, changes of the command being decided on top.

    `hot` are rows that need no loading.
    """

    def __init__(self, hot: Mapping[Key, tuple[Any, ...] | None] = MappingProxyType({})) -> None:
        self._hot = hot
        self.loaded: dict[Key, tuple[Any, ...] | None] = {}
        self.changed: dict[Key, tuple[Any, ...] | None] = {}
        self.healed: set[Key] = set()  # loaded rows that were made again from what they sum up
        self.hints: dict[Hint, None] = {}  # a dict for its order
        self.notices: dict[bytes, list[WireReceipt]] = {}
        self._staged: dict[Key, tuple[Any, ...] | None] = {}
        self._staged_hints: list[Hint] = []
        self._staged_notices: list[tuple[bytes, WireReceipt]] = []

    def get(self, row: type[R], *key: Any) -> R | None:
        at = (row, key)
        for layer in (self._staged, self.changed, self.loaded):
            if at in layer:
                return layer[at]  # type: ignore[return-value]
        if at in self._hot:
            found = self.loaded[at] = self._hot[at]
            return found  # type: ignore[return-value]
        raise Missing(at)

    def want(self, *keys: Key) -> None:
        """Ask for several rows at once, to need one round only."""
        a, b, c, d = self._staged, self.changed, self.loaded, self._hot
        missing = [key for key in keys if key not in a and key not in b and key not in c and key not in d]
        if missing:
            raise Missing(*missing)

    def put(self, row: tuple[Any, ...]) -> None:
        self._staged[type(row), row[: rows.KEYS[type(row)]]] = row

    def delete(self, row: tuple[Any, ...]) -> None:
        self._staged[type(row), row[: rows.KEYS[type(row)]]] = None

    def hint(self, kind: str, key: str | bytes = "") -> None:
        self._staged_hints.append(Hint(kind, key))

    def notice(self, peer: bytes, receipt: WireReceipt) -> None:
        """Tell a peer's node; all of one batch go into one notices event."""
        self._staged_notices.append((peer, receipt))

    def accept(self) -> None:
        """The command was decided: its changes count for the ones after it."""
        self.changed.update(self._staged)
        self.hints.update(dict.fromkeys(self._staged_hints))
        for peer, receipt in self._staged_notices:
            self.notices.setdefault(peer, []).append(receipt)
        self.refuse()

    def refuse(self) -> None:
        """Drop what the current command staged."""
        self._staged = {}
        self._staged_hints = []
        self._staged_notices = []

    def restart(self) -> None:
        """Decide the batch again over what is loaded now."""
        self.changed = {}
        self.hints = {}
        self.notices = {}
        self.refuse()


Outcome = Any


def decide_all(
    commands: list[Command], view: View, context: Context, close: "list[Command]"
) -> tuple[list[Outcome], set[Key]]:
    """Decide in arrival order, then the closing commands (which see the whole batch).

    Returns an outcome per command (an `ApiError` where it was refused) and the keys still missing; with missing
    keys the outcomes mean nothing.
    """
    outcomes: list[Outcome] = []
    missing: set[Key] = set()
    for command in [*commands, *close]:
        if missing and command in close:
            break
        try:
            outcomes.append(command.decide(view, context))
            view.accept()
        except Missing as error:
            missing.update(error.keys)
            view.refuse()
        except ApiError as error:
            outcomes.append(error)
            view.refuse()
    return outcomes[: len(commands)], missing
