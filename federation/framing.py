"""Frames in a byte stream (PROTOCOL.md 5.1): a 4-byte big-endian length, then that many bytes."""

from collections.abc import Iterable

from federation.ports import FRAME_BYTES_MAX

LENGTH_BYTES = 4
FRAME_S = 60.0  # what any frame has to arrive whole, once it began and somebody waits for it
FRAME_BYTES_PER_S = 4096  # and a second more for each so many bytes it announces: a thin line is no attack


def framed(frames: Iterable[bytes]) -> bytes:
    """The frames as they travel. ValueError for one over FRAME_BYTES_MAX."""
    pieces: list[bytes] = []
    for frame in frames:
        if len(frame) > FRAME_BYTES_MAX:
            raise ValueError(f"frame of {len(frame)} bytes, at most {FRAME_BYTES_MAX} fit")
        pieces += (len(frame).to_bytes(LENGTH_BYTES, "big"), frame)
    return b"".join(pieces)


class Cutter:
    """Cuts what arrives into whole frames and holds the start of the next one.

    It does not judge: whoever feeds it ends the connection once `announced` is more than it takes. Until then
    nothing that follows such a length is cut.
    """

    def __init__(self) -> None:
        self._partial = bytearray()

    def __len__(self) -> int:
        """Bytes held."""
        return len(self._partial)

    @property
    def announced(self) -> int:
        """Length of the frame being received; 0 while its header is incomplete."""
        return int.from_bytes(self._partial[:LENGTH_BYTES], "big") if len(self._partial) >= LENGTH_BYTES else 0

    @property
    def seconds(self) -> float:
        """How long the frame being received may take in all (PROTOCOL.md 5.12)."""
        return FRAME_S + min(self.announced, FRAME_BYTES_MAX) / FRAME_BYTES_PER_S

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now."""
        if self._partial:
            self._partial += data
            if len(self._partial) < LENGTH_BYTES + self.announced:
                return []  # a long frame only grows
            data, self._partial = bytes(self._partial), bytearray()
        frames: list[bytes] = []
        start, size = 0, len(data)
        while size - start >= LENGTH_BYTES:
            length = int.from_bytes(data[start : start + LENGTH_BYTES], "big")
            stop = start + LENGTH_BYTES + length
            if length > FRAME_BYTES_MAX or stop > size:
                break
            frames.append(data[start + LENGTH_BYTES : stop])
            start = stop
        self._partial += data[start:]
        return frames

    def clear(self) -> None:
        self._partial = bytearray()
