"""A node's settings: `Config` for people who embed; `config_file` reads and writes it as node.yaml.

A setting's type, bounds, meaning and place in the file stand next to it and nowhere else. Every mistake is a
`ConfigError` that names the setting and the next step.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import fields, force_setattr

from federation.identity import ADDRESSES_MAX, split_host_port
from federation.ids import check_domain

GROUPS = {
    "needed": "Needed: the node does not start without these.",
    "recommended": "Recommended: look at each of these once.",
    "nice": "Nice to have: the defaults are good; nothing here has to be touched.",
}
SERVER_URL = re.compile(
    r"[^:]+://(.*@)?(?P<host>\[[^]]+\]|[^/:?@\[\]]*)(:[0-9]{1,5})?/(?P<database>[^/?]+)(\?(?P<query>.*))?"
)


DATABASE, SOCKET = "roost.db", "admin.sock"  # in the data directory


class ConfigError(ValueError):
    """A setting is wrong; the text says where, what, and what to write instead."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that check themselves, however they were made: bounds hold for embedders too."""

    def __post_init__(self) -> None:
        for field in fields(type(self)):
            try:
                value = msgspec.convert(getattr(self, field.name), field.type)
            except msgspec.ValidationError as error:
                raise ConfigError(f"{field.name}: {error}") from None
            force_setattr(self, field.name, value)


def _doc(text: str, group: str = "", example: Any = None, **bounds: Any) -> Meta:
    text += f" ({bounds['ge']} to {bounds['le']})" if "ge" in bounds else ""
    return Meta(description=text, extra={"group": group}, examples=[example] if example else None, **bounds)


class Tls(Section, frozen=True):
    """How the TCP port is secured. QUIC always brings its own."""

    behind_proxy: Annotated[bool, _doc("A reverse proxy ends TLS; the TCP port then speaks plain HTTP.")] = False
    proxy_key_hashes: Annotated[
        tuple[Annotated[str, Meta(pattern="^[0-9a-f]{64}$")], ...],
        _doc("SHA-256 (hex) of each public key that the proxy may show.", example=["0" * 64], max_length=16),
    ] = ()


class Federation(Section, frozen=True):
    """Which other nodes may talk to us."""

    policy: Annotated[
        Literal["allowlist", "open", "block"],
        _doc("An unknown node that knocks waits for you (allowlist), gets in (open), is turned away (block)."),
    ] = "allowlist"


class Link(Section, frozen=True):
    """The connections to other nodes."""

    backoff_cap_ms: Annotated[int, _doc("Longest wait between two tries.", ge=1_000, le=3_600_000)] = 300_000
    ping_ms: Annotated[int, _doc("A quiet link is pinged this often.", ge=100, le=600_000)] = 10_000
    dead_after_ms: Annotated[int, _doc("A link silent this long is dead.", ge=300, le=3_600_000)] = 30_000
    window_events: Annotated[int, _doc("Unanswered events on the way to one peer.", ge=1, le=1_024)] = 256
    window_bytes: Annotated[int, _doc("The same in bytes.", ge=1 << 17, le=1 << 24)] = 4 << 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dead_after_ms <= self.ping_ms:
            raise ConfigError(f"dead_after_ms: {self.dead_after_ms} must be more than ping_ms ({self.ping_ms})")


class Limits(Section, frozen=True):
    """How much the node holds before it says no. Whoever is refused is told."""

    # Not below what one device may have on the way: it acknowledges in steps, and would wait for its own step.
    mailbox_messages: Annotated[
        int, _doc("Messages, sent and received, that none of a user's devices has fetched.", ge=1_000, le=10**8)
    ] = 500_000
    waiting_per_peer_events: Annotated[int, _doc("Events that wait for one unreachable peer.", ge=100, le=10**8)] = (
        200_000
    )
    mailbox_bytes: Annotated[int, _doc("The same in bytes.", ge=1 << 20, le=1 << 44)] = 1 << 30
    waiting_per_peer_bytes: Annotated[
        int, _doc("Bytes that wait for one unreachable peer.", ge=1 << 20, le=1 << 44)
    ] = 2 << 30
    peer_quota_bytes: Annotated[
        int,
        _doc(
            "What a peer may make us keep unasked (refused events, first messages), per 30 days.", ge=4096, le=1 << 44
        ),
    ] = 64 << 20
    requests_per_second: Annotated[
        int, _doc("Of one user on all devices together; ten seconds of it may come at once.", ge=1, le=10**6)
    ] = 1_000
    peer_events_per_second: Annotated[
        int, _doc("Taken from one peer; ten seconds of it may come at once.", ge=1, le=10**6)
    ] = 5_000
    disk_reserve_bytes: Annotated[
        int, _doc("With less room on the disk nothing new is taken. 0: 5 % of it, at most 512 MiB.", ge=0, le=1 << 44)
    ] = 0
    sessions: Annotated[
        int, _doc("Clients at once; a quarter (or 16) without a login, of these a quarter per address.", ge=1, le=10**6)
    ] = 10_000
    message_bytes: Annotated[
        int, _doc("Largest body that our own users send; the protocol allows 64 KiB.", ge=256, le=65_536)
    ] = 65_536


class Log(Section, frozen=True):
    """What the node tells about itself. Bodies and secrets are never logged."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _doc("Least severe line shown.")] = "info"


class Config(Section, frozen=True):
    """Everything one node is told. `Config(name="lab.example", data_dir="lab")` is a whole one."""

    name: Annotated[
        str, _doc("The node's name: the part after the @. International names in their xn-- form.", "needed")
    ]
    listen: Annotated[
        str | None,
        _doc("HOST:PORT for nodes and clients: one UDP and one TCP port.", "needed", "0.0.0.0:7701"),
    ] = None  # no port at all: a node embedded in a process and used only from there
    data_dir: Annotated[
        str, _doc("Folder of the key and the store; relative to this file.", "recommended", min_length=1)
    ] = "data"
    registration: Annotated[
        Literal["closed", "invite"],
        _doc(
            "Who may make an account: only you (closed), or also who holds an invite of yours (invite).", "recommended"
        ),
    ] = "invite"
    federation: Annotated[Federation, _doc("", "recommended")] = Federation()
    advertise: Annotated[
        tuple[str, ...],
        _doc(
            "Where others reach us, for our link. Default: listen.",
            "recommended",
            ["lab.example:7701"],
            max_length=ADDRESSES_MAX,
        ),
    ] = ()
    database: Annotated[
        str | None,
        _doc(
            "Postgres. Default: SQLite in data_dir.",
            "recommended",
            "postgresql+asyncpg://roost@localhost/roost",
        ),
    ] = None
    tls: Annotated[Tls, _doc("", "nice")] = Tls()
    link: Annotated[Link, _doc("", "nice")] = Link()
    limits: Annotated[Limits, _doc("", "nice")] = Limits()
    log: Annotated[Log, _doc("", "nice")] = Log()

    def __post_init__(self) -> None:
        super().__post_init__()
        _checked("name", check_domain, self.name)
        if self.listen is not None:
            _checked("listen", split_host_port, self.listen)
        for hint in self.advertise:
            _checked("advertise", split_host_port, hint)
        if self.database is not None:
            _checked("database", _check_database, self.database)

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)

    @property
    def database_url(self) -> str:
        """Where the store is, as SQLAlchemy spells it."""
        return self.database or f"sqlite:///{self.data_path / DATABASE}"

    @property
    def listen_at(self) -> tuple[str, int] | None:
        """Host and port to bind; none for a node without ports."""
        return None if self.listen is None else split_host_port(self.listen)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and hardly meant, each with what to do."""
        found = []
        if self.listen_at is not None and self.listen_at[0] in ("0.0.0.0", "::") and not self.advertise:
            found.append(
                f"{self.listen} is no address that others can call, and our link says it: "
                "set `advertise` to where they reach this node, e.g. --set advertise=[HOST:PORT]"
            )
        return tuple(found)

    @property
    def hints(self) -> tuple[str, ...]:
        """Where others may find us, for our link; as configured, so possibly a wildcard address."""
        return self.advertise or ((self.listen,) if self.listen is not None else ())


def _check_database(url: str) -> None:
    """A whole URL: what it leaves out, the driver would take from the user who happens to run the node."""
    if not url.startswith("postgresql+asyncpg://"):
        raise ValueError("expected a postgresql+asyncpg:// URL; without one it is SQLite")
    found = SERVER_URL.fullmatch(url)
    if found is None or not (found["host"] or "host=" in (found["query"] or "")):
        raise ValueError("expected a host and a database: postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE")


def _checked(name: str, check: Callable[[str], object], value: str) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


# ---- reading ----
