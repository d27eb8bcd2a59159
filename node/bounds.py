"""Every queue, table and buffer that somebody else can fill, with its bound, its use and how often it said no.

One list for `roost status`, and for the test that finds a bound which nobody sees.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from federation import calls, endpoint, event, ids, link, passing, running, wire
from node import admin, api, ephemerals, host, node, session
from node.core import blocks, bucket, quarantine, receive
from node.core.peers import STRANGERS
from node.core.quota import used
from node.storage import reads, waits, writer

if TYPE_CHECKING:
    from node.core import rows


class Bound(NamedTuple):
    """`used` of `bound`; where there are many of its kind (a mailbox each), of the fullest one."""

    name: str
    used: int
    bound: int
    refused: int  # times that it was at its bound
    then: str  # what happens there, for people
    of: tuple[str, ...]  # the constants and settings that say it


async def all_bounds(of: "node.Node") -> list[Bound]:
    """As they are now."""
    totals, peers = await of.store.read(waits.totals), await of.store.read(reads.all_peers)
    return [*_stored(of, totals, peers), *_clients(of), *_peers(of), *_doors(of), *_kept(of)]


def _stored(of: "node.Node", totals: dict[str, int], peers: "list[rows.Peer]") -> Iterable[Bound]:
    limits, store, verdicts = of.config.limits, of.store, of.host.refused
    full, backlog = store.refused["mailbox_full"] + verdicts["mailbox_full"], store.refused["destination_backlogged"]
    quota, now = limits.peer_quota_bytes, of.system.wall_ms()
    spent = max((used(peer, now, quota) for peer in peers), default=0)
    unasked = verdicts["rate_limited"] - verdicts["peer events"]
    return (
        Bound("messages in a mailbox", totals["mailbox messages"], limits.mailbox_messages, full,
              "sends to it and by its owner are refused: mailbox_full", ("limits.mailbox_messages",)),
        Bound("bytes in a mailbox", totals["mailbox bytes"], limits.mailbox_bytes, full,
              "the same", ("limits.mailbox_bytes",)),
        Bound("events waiting for a peer", totals["waiting events"], limits.waiting_per_peer_events, backlog,
              "sends there are refused: destination_backlogged", ("limits.waiting_per_peer_events",)),
        Bound("bytes waiting for a peer", totals["waiting bytes"], limits.waiting_per_peer_bytes, backlog,
              "the same", ("limits.waiting_per_peer_bytes",)),
        Bound("bytes a peer made us keep unasked", spent, quota, unasked,
              "it is told to come later: rate_limited", ("limits.peer_quota_bytes",)),
        Bound("strangers' nodes known", sum(p.state in STRANGERS for p in peers), host.STRANGERS_MAX,
              verdicts["strangers"], "further ones are told that they are blocked", ("node.host.STRANGERS_MAX",)),
        Bound("events of a peer in quarantine", totals["held events"], quarantine.EVENTS_MAX, verdicts["failed"],
              "the conversation waits at the peer", ("node.core.quarantine.EVENTS_MAX", "node.host.TRIED_MAX")),
        Bound("bytes of a peer in quarantine", totals["held bytes"], quarantine.BYTES_MAX, verdicts["failed"],
              "the same", ("node.core.quarantine.BYTES_MAX",)),
        Bound("people that a user blocks", totals["blocks"], blocks.BLOCKS_MAX, store.refused["too_large"],
              "refused: too_large (so are messages that are too long)", ("node.core.blocks.BLOCKS_MAX",)),
        Bound("commands waiting for the store", store.waiting, writer.WAITING_MAX, store.refused["busy"],
              "refused: busy", ("node.storage.writer.WAITING_MAX",)),
    )  # fmt: skip


def _clients(of: "node.Node") -> Iterable[Bound]:
    limits, no, sessions = of.config.limits, of.refusals, [s for group in of.sessions.values() for s in group]
    strangers = max(limits.sessions // node.STRANGERS_SHARE, node.STRANGERS_MIN)
    feeds = [s.feed for s in sessions if s.feed is not None]
    known = sum(p.state in ("accepted", "open") for p in of.directory.peers.values())
    return (
        Bound("connections of clients", len(of.connections), limits.sessions, no["connections"],
              "told to come later: busy", ("limits.sessions",)),
        Bound("of these without a login", len(of.strangers), strangers, no["connections without a login"],
              "the same; also for a quarter of them from one address",
              ("node.node.STRANGERS_SHARE", "node.node.STRANGERS_MIN")),
        Bound("connections being told so", len(of.refused), node.REFUSED_MAX, no["untold"],
              "closed without a word", ("node.node.REFUSED_MAX",)),
        Bound("requests of a connection unanswered", max((s.in_flight for s in sessions), default=0),
              api.REQUESTS_IN_FLIGHT_MAX, no["requests in flight"], "the connection is not read until one is",
              ("node.api.REQUESTS_IN_FLIGHT_MAX", "node.api.REQUEST_BYTES_IN_FLIGHT_MAX",
               "node.session.ANSWERS_BYTES_MAX")),
        Bound("requests of a user a second", len(of.rates), bucket.NAMES_MAX, no["requests"],
              f"more than {limits.requests_per_second} are refused: rate_limited (used: users)",
              ("limits.requests_per_second", "node.core.bucket.NAMES_MAX", "node.session.REFUSED_MAX")),
        Bound("items pushed to a device and not taken", max((f.on_the_way for f in feeds), default=0),
              api.FEED_ITEMS_MAX, no["feed"], "no more is pushed until some are; they are on disk",
              ("node.api.FEED_ITEMS_MAX", "node.api.FEED_BYTES_MAX")),
        Bound("lights to be shown to a device", max((s.lights_waiting for s in sessions), default=0), known,
              no["lights"], "the newest of each peer counts", ()),
        Bound("signs of life to be shown to a device", max((s.signs_waiting for s in sessions), default=0),
              session.SIGNS_MAX, no["signs of life"] + of.ephemerals.refused["typing"], "dropped",
              ("node.session.SIGNS_MAX",)),
    )  # fmt: skip


def _peers(of: "node.Node") -> Iterable[Bound]:
    service, no, links = of.service, of.service.refused, list(of.service.links.values())
    limits, window = of.config.limits, of.config.link
    known = len(of.directory.peers)
    return (
        Bound("backed-off peers", len(service.backoffs), known, 0, "one for each peer", ()),
        Bound("events on the way to a peer", max((run.state.on_the_way for run in links), default=0),
              window.window_events, no["window"], "the rest waits on disk for acknowledgements",
              ("link.window_events", "link.window_bytes")),
        Bound("conversations that a peer wants later", max((len(run.state.paused) for run in links), default=0),
              link.RESTING_MAX, no["resting"], "nothing is sent to it until one may go on",
              ("federation.link.RESTING_MAX", "node.host.PAUSED_MAX")),
        Bound("events received and not stored yet", max((run.waiting_events for run in links), default=0),
              running.RECEIVING_EVENTS_MAX, no["overrun"], "the link ends: overrun",
              ("federation.running.RECEIVING_EVENTS_MAX", "federation.running.RECEIVING_BYTES_MAX")),
        Bound("questions of a restored peer", max((run.recalls for run in links), default=0), running.RECALLS_MAX,
              no["recalls"], "the link ends: overrun", ("federation.running.RECALLS_MAX",)),
        Bound("events of a peer a second", len(of.host.rates), bucket.NAMES_MAX, of.host.refused["peer events"],
              f"more than {limits.peer_events_per_second} wait, then are refused: rate_limited (used: peers)",
              ("limits.peer_events_per_second",)),
        Bound("signs of life on the way to a peer", max((len(run.passing) for run in links), default=0),
              passing.WAITING_MAX, no["signs of life"], "dropped", ("federation.passing.WAITING_MAX",)),
        Bound("signs of life of a peer to be looked at", of.ephemerals.pending, ephemerals.PENDING_MAX,
              of.ephemerals.refused["peers"], "dropped", ("node.ephemerals.PENDING_MAX",)),
        Bound("presences remembered", len(of.ephemerals.presences), ephemerals.PRESENCES_MAX,
              of.ephemerals.presences.dropped, "the longest unheard is forgotten", ("node.ephemerals.PRESENCES_MAX",)),
        Bound("hellos of a node", len(of.host.hellos), bucket.NAMES_MAX, of.host.refused["hellos"],
              f"after {host.HELLOS_MAX} at once, one a second is answered (used: nodes)", ("node.host.HELLOS_MAX",)),
        Bound("acknowledgements to be stored again", of.host.retrying, window.window_events,
              of.host.refused["acknowledgements"], "tried again each second; the window fills meanwhile", ()),
    )  # fmt: skip


def _doors(of: "node.Node") -> Iterable[Bound]:
    if of.doors is None:
        return ()
    udp, web, asked = of.doors.udp, of.doors.web, of.doors.admin
    own = (
        Bound("QUIC connections of nodes", udp.served(wire.ALPN), endpoint.CONNECTIONS_MAX, udp.counters.refused,
              "refused, or not answered", ("federation.endpoint.CONNECTIONS_MAX",)),
        Bound("QUIC handshakes going on", udp.counters.half_open, endpoint.HALF_OPEN_MAX, udp.counters.refused,
              f"not answered; above {endpoint.RETRY_ABOVE} an address is proved first (so far {udp.counters.retried})",
              ("federation.endpoint.HALF_OPEN_MAX", "federation.endpoint.RETRY_ABOVE",
               "federation.endpoint.NOISE_PER_S_MAX")),
        Bound("QUIC handshakes of one proved address", udp.of_one_origin, endpoint.HALF_OPEN_PER_ORIGIN_MAX,
              udp.counters.crowded, "not answered", ("federation.endpoint.HALF_OPEN_PER_ORIGIN_MAX",)),
        Bound("answers to forgotten connections a second", udp.resets_now, endpoint.RESETS_PER_S_MAX,
              udp.counters.resets_refused, "not answered", ("federation.endpoint.RESETS_PER_S_MAX",)),
        Bound("administrators connected", asked.open_now, admin.OPEN_MAX, asked.refused, "refused: busy",
              ("node.admin.OPEN_MAX",)),
        Bound("addresses that answered over TCP only", len(of.doors.caller), calls.REMEMBERED_MAX, 0,
              "the longest unused is called over QUIC first", ("federation.calls.REMEMBERED_MAX",)),
    )  # fmt: skip
    if web is None:
        return own
    tcp = (
        Bound("TCP links of nodes", web.links, endpoint.CONNECTIONS_MAX, web.links_refused,
              "answered 503; so are links that are not up beyond their own bounds",
              ("node.gateway.websocket.STRANGERS_MAX", "node.gateway.websocket.STRANGERS_PER_ORIGIN_MAX")),
        Bound("TCP connections without a request", web.half_open, endpoint.HALF_OPEN_MAX, web.displaced,
              "the oldest is closed", ()),
    )  # fmt: skip
    return (*own, *tcp)


def _kept(of: "node.Node") -> Iterable[Bound]:
    keys, texts, headers = receive._keys.cache_info(), ids.to_text.cache_info(), event.peek_header.cache_info()
    return (
        Bound("rows remembered", len(of.store.hot.rows), writer.HOT_ROWS_MAX, of.store.hot.dropped,
              "the longest unused is read again", ("node.storage.writer.HOT_ROWS_MAX",)),
        Bound("peers' keys remembered", keys.currsize, receive.KEYS_CACHED_MAX, keys.misses,
              "the longest unused is checked again (refused: checks)", ("node.core.receive.KEYS_CACHED_MAX",)),
        Bound("ids remembered", texts.currsize, ids.CACHED_MAX, texts.misses,
              "the longest unused is spelled again (refused: spellings)", ("federation.ids.CACHED_MAX",)),
        Bound("headers remembered", headers.currsize, event.OPENED_MAX, headers.misses,
              "the longest unused is opened again (refused: openings)", ("federation.event.OPENED_MAX",)),
    )  # fmt: skip
