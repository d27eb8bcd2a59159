"""Many datagrams in one call, where the kernel can, and one by one where it cannot: the same arrives."""

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from federation import udp as module
from federation.dialer import READ_BATCH_MAX, Dialer
from federation.udp import BATCH_BYTES_MAX, SEGMENTS_MAX, UDP_GRO, UDP_SEGMENT, Udp, batches

ANYWHERE = ("127.0.0.1", 0)
SIZES = [1200] * 100 + [700, 1200, 30, 31, 1200, 1200, 5, 5, 5, 2000]


def make() -> Udp:
    return Udp(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), ANYWHERE)


@pytest.fixture(params=["many", "plain"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Udp, Udp]]:
    if request.param == "plain":
        monkeypatch.setattr(module, "_has", lambda *_: False)
    one, other = make(), make()
    if request.param == "many" and not (one.takes_many and one.sends_many):
        pytest.skip("this kernel has no UDP_SEGMENT or UDP_GRO")
    yield one, other
    one.close()
    other.close()


def take(udp: Udp, count: int) -> tuple[list[bytes], int]:
    """All of them in order, and in how many calls."""
    got: list[bytes] = []
    calls = 0
    while len(got) < count:
        data, _ = udp.receive()
        got += data
        calls += 1
    return got, calls


def test_what_was_sent_arrives_in_pieces_as_it_was(pair: tuple[Udp, Udp]) -> None:
    one, other = pair
    sent = [os.urandom(size) for size in SIZES]
    assert one.send([(data, other.getsockname()) for data in sent]) == sum(SIZES)
    got, calls = take(other, len(sent))
    assert got == sent
    assert calls < len(sent) / 4 if other.takes_many else calls == len(sent)
    with pytest.raises(BlockingIOError):
        other.receive()


def test_an_end_with_batches_and_one_without_understand_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for without in (UDP_GRO, UDP_SEGMENT):
        has = module._has
        with monkeypatch.context() as patch:
            patch.setattr(module, "_has", lambda sock, option, value: option != without and has(sock, option, value))  # noqa: B023
            one, other = make(), make()
        one.send([(bytes([n]) * 1000, other.getsockname()) for n in range(50)])
        assert take(other, 50)[0] == [bytes([n]) * 1000 for n in range(50)]
        one.close()
        other.close()


def test_a_way_out_that_cannot_cut_gets_them_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make(), make()
    one.sends_many = True

    class Unable:
        def sendmsg(self, *_: object) -> int:
            raise OSError(errno.EIO, "no checksums here")

        def sendto(self, data: bytes, addr: object) -> int:
            return real.sendto(data, addr)

    real = one._sock
    one._sock = Unable()  # type: ignore[assignment]
    assert one.send([(b"x" * 100, other.getsockname())] * 10) == 1000
    assert not one.sends_many
    assert take(other, 10)[0] == [b"x" * 100] * 10
    real.close()
    other.close()


def test_batches_are_what_one_call_can_carry() -> None:
    here, there = ("127.0.0.1", 1), ("127.0.0.1", 2)
    many = [(b"x" * 1200, here)] * 200 + [(b"y" * 1200, there), (b"y" * 7, there), (b"y" * 7, there), (b"", here)]
    made = list(batches(many))
    assert [(data, addr) for batch, addr in made for data in batch] == many
    for batch, _ in made:
        assert len(batch) <= SEGMENTS_MAX
        assert sum(map(len, batch)) <= BATCH_BYTES_MAX
        assert {len(data) for data in batch[:-1]} <= {len(batch[0])}
        assert len(batch[-1]) <= len(batch[0])
    assert len(made) == 4 + 3
    assert list(batches([])) == []


async def test_a_full_socket_does_not_keep_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Dialer() as dialer:
        dialer._open(socket.AF_INET)
        sock, seen = dialer._sockets[socket.AF_INET], []
        monkeypatch.setattr(dialer, "_received", lambda data, addr: seen.append(data))
        sender = make()
        for _ in range(10):
            sender.send([(b"x" * 1000, ("127.0.0.1", sock.getsockname()[1]))] * SEGMENTS_MAX)
        dialer._readable(sock)
        assert READ_BATCH_MAX <= len(seen) < READ_BATCH_MAX + SEGMENTS_MAX
        sender.close()
