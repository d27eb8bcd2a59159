"""`ports.Channel` over a WebSocket: the way in where UDP is blocked."""

from collections.abc import Sequence

import aiohttp

from federation.ports import FRAME_BYTES_MAX, ChannelClosed
from federation.websocket import Dialled, dial

PATH = "/v1/ws"


class WebSocketChannel:
    """One binary message a frame. aiohttp holds a sender back once its buffer is full."""

    def __init__(self, dialled: Dialled, why: str) -> None:
        self.binding, self.remote, self.why = dialled.binding, dialled.remote, why
        self._socket, self._release = dialled.socket, dialled.release

    async def send(self, *frames: bytes) -> None:
        try:
            for frame in frames:
                await self._socket.send_bytes(frame)
        except (ConnectionError, OSError, RuntimeError) as error:
            raise ChannelClosed(f"the WebSocket to {self.remote} broke: {error}") from None

    async def recv(self) -> Sequence[bytes]:
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return (message.data,)
        if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
            if self._socket.close_code in (1000, 1001):
                return ()
            raise ChannelClosed(f"{self.remote} closed the WebSocket ({self._socket.close_code})")
        if message.type is aiohttp.WSMsgType.ERROR:
            raise ChannelClosed(f"the WebSocket to {self.remote} broke: {message.data}")
        raise ChannelClosed(f"{self.remote} sent a WebSocket frame that is not binary")

    def trust(self) -> None:
        """Nothing to lift: aiohttp's own limit is one frame."""

    async def close(self, reason: str = "") -> None:
        try:
            await self._socket.close(message=reason.encode()[:120])
        finally:
            await self._release()


async def open_websocket(host: str, port: int, timeout: float, why: str = "") -> WebSocketChannel:
    """Dial; `ChannelClosed` when there is no WebSocket. `why`: for people, why not over QUIC."""
    return WebSocketChannel(await dial(host, port, PATH, timeout, FRAME_BYTES_MAX), why)
