"""Which addresses somebody else's word may make us call (PROTOCOL.md 3.7).

An address that an administrator gave is called as it is. A hint of a hello, or what its name resolves to, is called
only where the node that gave it is itself: on the open network, on a private one, or on this machine.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal

Reach = Literal["public", "private", "loopback"]
WIDTH: tuple[Reach, ...] = ("public", "private", "loopback")  # each includes those before it

_PRIVATE = tuple(
    ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
        *("100.64.0.0/10", "198.18.0.0/15", "fc00::/7", "fec0::/10"),  # RFC 6598, 2544, 4193, 3879
    )
)
_NEVER = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("fe80::/10", "ff00::/8"),
        # An IPv4 address in an IPv6 one (RFC 6052, 8215, 3056, 4380): a gateway may take it to a place that is not
        # public, and nobody has to write one. `::ffff:0:0/96`, which the system makes itself, is opened instead.
        *("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"),
    )
)


def reach_of(text: str) -> Reach | None:
    """Where an IP address is; none where nobody's hint leads: link-local, multicast, broadcast, unspecified.

    ValueError for what is no IP address.
    """
    address: IPv4Address | IPv6Address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return "loopback"
    if any(address in network for network in _NEVER):
        return None
    return "private" if any(address in network for network in _PRIVATE) else "public"


def may_call(text: str, widest: Reach) -> bool:
    """Whether an IP address is within `widest`."""
    try:
        found = reach_of(text)
    except ValueError:
        return False
    return found is not None and WIDTH.index(found) <= WIDTH.index(widest)


def reach_from(remote: str) -> Reach:
    """How far hints may lead that came over a channel from `remote`, as `Channel.remote` says it.

    Who is not where we can see, as behind a proxy, is on the open network.
    """
    if remote == "memory":
        return "loopback"  # inside this process
    try:
        return reach_of(remote.rpartition(":")[0].strip("[]")) or "public"
    except ValueError:
        return "public"
