"""`python -m tests.faults.wire DEVICE...`: a bad wire between machines, in the network namespace in the middle.

Each device leads to one machine: device `a` to the machine of the MAC address `mac(0)`, and so on. Frames from one go
to the others, lost, late, twice, out of order or damaged, as `Shape` says for each way (`ab`: from a to b). A line of
JSON on standard input, `{"ways": ["ab"], "shape": {"loss": 0.1}}`, sets what is not given back to harmless; the answer
is what happened so far. ARP passes untouched. `python -m tests.faults.wire --plain DEVICE` makes a machine's own device
compute its checksums and cut its packets itself, so that what leaves it is what a wire would carry. Linux only.
"""

import ctypes
import fcntl
import heapq
import json
import random
import select
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

ETHERNET, IPV4, ARP = 14, 0x0800, 0x0806
TCP, UDP = 6, 17
EVERYTHING = 0x0003  # ETH_P_ALL
READ_MAX = 64  # frames of one device before the others have their turn
SIOCETHTOOL = 0x8946
OFFLOADS = (0x17, 0x19, 0x1F, 0x24)  # ETHTOOL_STXCSUM, _SSG, _STSO, _SGSO of linux/ethtool.h


@dataclass
class Shape:
    """One way through the wire. Shares are of frames, 0 to 1."""

    loss: float = 0
    duplicate: float = 0
    corrupt: float = 0  # one bit of the payload; over UDP with a checksum that fits, so that only QUIC can notice
    reorder: float = 0  # overtakes those that are delayed
    delay_ms: float = 0
    jitter_ms: float = 0  # more or less
    cut: bool = False  # nothing passes
    flap_s: float = 0  # this long nothing is cut, then all, and so on
    mtu: int = 0  # longer packets vanish without a word
    bits_per_s: float = 0
    queue_bytes: int = 16 << 10  # that wait for the rate; more are lost
    nat: int = 0  # added to the UDP port that a sender is seen at; nobody is called through it from outside


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number + 1:02x}"


class Wire:
    def __init__(self, devices: list[str]) -> None:
        self.sockets = {}
        for device in devices:
            self.sockets[device] = s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
            s.bind((device, EVERYTHING))
            s.setblocking(False)
        self.shapes = {a + b: Shape() for a in devices for b in devices if a != b}
        self.seen = Counter[str]()
        self._began = time.monotonic()
        self._free = dict.fromkeys(self.shapes, 0.0)  # when the rate lets the next frame go
        self._late: list[tuple[float, int, str, bytes]] = []
        self._calls: set[bytes] = set()  # connection ids of QUIC's callers, and the same of TCP's
        self._answers: set[bytes] = set()
        self._chance = random.Random(1)

    def run(self) -> None:
        while True:
            wait = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            ready, _, _ = select.select([sys.stdin, *self.sockets.values()], [], [], wait)
            self._deliver()
            for device, s in self.sockets.items():
                if s in ready:
                    self._read(device, s)
            if sys.stdin in ready:
                if not (line := sys.stdin.readline()):
                    return
                self._set(**json.loads(line))

    def _set(self, ways: list[str], shape: dict[str, Any]) -> None:
        for way in ways:
            self.shapes[way] = Shape(**shape)
        self._began = time.monotonic()
        sys.stdout.write(json.dumps(self.seen) + "\n")
        sys.stdout.flush()

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, device, frame = heapq.heappop(self._late)
            try:
                self.sockets[device].send(frame)
            except OSError:  # the device takes no frame so long, or has no room
                self.seen["not taken"] += 1

    def _read(self, device: str, s: socket.socket) -> None:
        for _ in range(READ_MAX):
            try:
                frame, where = s.recvfrom(1 << 16)
            except BlockingIOError:
                return
            if where[2] == socket.PACKET_OUTGOING:
                continue
            kind = int.from_bytes(frame[12:14], "big")
            names = list(self.sockets)
            number = frame[5] - 1
            others = [n for n in names if n != device]
            for to in [names[number]] if frame[0] == 2 and number < len(names) else others:
                if kind == ARP:
                    self._put(0, to, frame)
                elif kind == IPV4:
                    self._pass(device + to, to, bytearray(frame))
            self._deliver()

    def _put(self, due: float, to: str, frame: bytes) -> None:
        self.seen["frames"] += 1
        heapq.heappush(self._late, (due, self.seen["frames"], to, frame))

    def _pass(self, way: str, to: str, frame: bytearray) -> None:
        shape, back = self.shapes[way], self.shapes[way[::-1]]
        now, chance = time.monotonic(), self._chance.random
        self._count_calls(frame)
        flapped = shape.flap_s and int((now - self._began) / shape.flap_s) % 2
        if shape.cut or flapped or chance() < shape.loss:
            self.seen["lost"] += 1
            return
        if shape.mtu and len(frame) - ETHERNET > shape.mtu:
            self.seen["too long"] += 1
            return
        if not _translate(frame, shape.nat, back.nat):
            self.seen["unasked"] += 1
            return
        if shape.bits_per_s:
            start = max(now, self._free[way])
            if (start - now) * shape.bits_per_s / 8 > shape.queue_bytes:
                self.seen["no room"] += 1
                return
            self._free[way] = now = start + len(frame) * 8 / shape.bits_per_s
        if chance() < shape.corrupt and self._damage(frame):
            self.seen["damaged"] += 1
        for copy in range(1 + (chance() < shape.duplicate)):
            self.seen["doubled"] += copy
            late = shape.delay_ms + (chance() * 2 - 1) * shape.jitter_ms
            if shape.reorder and chance() < shape.reorder:
                late = 0
                self.seen["early"] += 1
            self._put(now + late / 1000, to, bytes(frame))

    def _damage(self, frame: bytearray) -> bool:
        protocol, at = _transport(frame)
        start = at + 8 if protocol == UDP else at + 20
        if not at or start >= len(frame):
            return False
        frame[self._chance.randrange(start, len(frame))] ^= 1 << self._chance.randrange(8)
        if protocol == UDP:
            frame[at + 6 : at + 8] = b"\0\0"  # none: RFC 768
        return True

    def _count_calls(self, frame: bytearray) -> None:
        """How often somebody called: first packets of QUIC by connection (RFC 9000 section 17.2), and TCP's."""
        protocol, at = _transport(frame)
        if protocol == TCP and frame[at + 13] & 0x12 == 0x02 and (call := bytes(frame[at : at + 8])) not in self._calls:
            self._calls.add(call)  # ports and number: the same when it is sent again
            self.seen["tcp calls"] += 1
        head = at + 8
        if protocol == UDP and len(frame) > head + 30 and frame[head] & 0xF0 == 0xC0:
            to_end = head + 6 + frame[head + 5]
            to, by = bytes(frame[head + 6 : to_end]), bytes(frame[to_end + 1 : to_end + 1 + frame[to_end]])
            if to in self._calls:
                self._answers.add(by)
            elif by not in self._answers and by not in self._calls:
                self._calls.add(by)
                self.seen["quic calls"] += 1


def _transport(frame: bytearray) -> tuple[int, int]:
    """Protocol, and where its header begins; 0, 0 for a later fragment."""
    if int.from_bytes(frame[20:22], "big") & 0x1FFF:
        return 0, 0
    return frame[23], ETHERNET + 4 * (frame[14] & 15)


def _translate(frame: bytearray, sender: int, receiver: int) -> bool:
    """As a NAT box in front of the sender, and one in front of the receiver; false: nobody in there asked for it."""
    protocol, at = _transport(frame)
    if protocol == TCP:
        return not (receiver and frame[at + 13] & 0x12 == 0x02)
    if protocol != UDP or not (sender or receiver):
        return True
    source, target = struct.unpack_from("!HH", frame, at)
    source, target = source + sender, target - receiver
    struct.pack_into("!HH", frame, at, source, target & 0xFFFF)
    frame[at + 6 : at + 8] = b"\0\0"
    return True


def plain(device: str) -> None:
    with socket.socket() as s:
        for offload in OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("=II", offload, 0))
            fcntl.ioctl(s, SIOCETHTOOL, struct.pack("16sP", device.encode(), ctypes.addressof(value)))


if __name__ == "__main__":
    if sys.argv[1] == "--plain":
        plain(sys.argv[2])
    else:
        Wire(sys.argv[1:]).run()
