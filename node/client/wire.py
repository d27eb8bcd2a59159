"""A channel whose other end has proved to be the node of our link, and the codec spoken over it."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import msgspec

from federation import identity
from federation.errors import ProtocolError
from federation.identity import NodeLink
from federation.ids import to_text
from federation.ports import Channel, ChannelClosed
from node import api, coding
from node.client.errors import NodeKeyError, Unreachable

HELLO_S = 10.0  # longest wait for a welcome
Connect = Callable[[], Awaitable["Wire"]]


class Wire:
    """A greeted channel; `close` also releases what was opened for it."""

    def __init__(
        self,
        channel: Channel,
        welcome: api.Welcome,
        codec: coding.Codec = coding.MSGPACK,
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.channel, self.welcome, self.codec = channel, welcome, codec
        self.release = release

    @property
    def node(self) -> bytes:
        """The id that the other end has proved, which is the link's."""
        return identity.check_chain(identity.decode_chain(self.welcome.chain)).node

    async def close(self, reason: str = "") -> None:
        try:
            await self.channel.close(reason)
        finally:
            release, self.release = self.release, None
            if release is not None:
                await release()


async def greet(channel: Channel, link: NodeLink, codec: coding.Codec = coding.MSGPACK) -> Wire:
    """Say hello and check the answer against the link; the channel is closed unless it is the right node.

    Raises `NodeKeyError`, `Unreachable`, `ApiError` or `ChannelClosed`.
    """
    try:
        async with asyncio.timeout(HELLO_S):
            nonce = secrets.token_bytes(32)
            await channel.send(codec.encode(api.Hello(api.VERSION, api.VERSION, nonce)))
            frames = await channel.recv()
        if not frames:
            raise ChannelClosed("the other side closed the connection")
        answer = codec.from_node(frames[0])
        if isinstance(answer, api.Error | api.Goodbye):
            text = answer.message if isinstance(answer, api.Error) else answer.reason
            raise Unreachable(f"{link.name} refused the connection: {text or answer.code}")
        if not isinstance(answer, api.Welcome) or len(frames) > 1:  # nothing is said unasked before the login
            raise Unreachable(f"{channel.remote} answered something that is not a Roost node's welcome")
        check(answer, link, channel, nonce)
        channel.trust()
        return Wire(channel, answer, codec)
    except BaseException as error:
        await channel.close("refused" if isinstance(error, NodeKeyError) else "")
        if isinstance(error, TimeoutError):
            raise Unreachable(f"{link.name} did not answer the hello within {HELLO_S:g} s") from None
        raise


def checked(request: api.AnyRequest) -> api.AnyRequest:
    """The request, or `ApiError`: the node would end the connection over a value out of bounds, and go on doing so."""
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=type(request))
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise api.ApiError("bad_request", f"{where.rstrip('`') or 'a value'}: {what}") from None
    except UnicodeEncodeError:
        raise api.ApiError("bad_request", "a text has characters that are not Unicode") from None
    return request


def check(welcome: api.Welcome, link: NodeLink, channel: Channel, nonce: bytes) -> None:
    """`NodeKeyError` unless the welcome proves, over this very channel, the node id of the link."""
    try:
        proven = identity.check_chain(identity.decode_chain(welcome.chain))
    except ProtocolError as error:
        raise NodeKeyError(f"{link.name} answered with a broken key chain ({error}), do not log in") from None
    if proven.node != link.node:
        raise NodeKeyError(
            f"{link.name} answered with another node's key: got {to_text(proven.node)}, expected "
            f"{to_text(link.node)}, do not log in; ask the administrator for the link"
        )
    signed = identity.hello_bytes("server", channel.binding, welcome.nonce, nonce)
    if not identity.verify(proven.key, "hello", signed, welcome.proof):
        raise NodeKeyError(
            f"{link.name} could not prove its key on this connection: somebody may stand in between, "
            "do not log in; try another network and tell the administrator"
        )
