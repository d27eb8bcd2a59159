"""B1 and B2: bytes from anybody are read or refused with a typed error, in little time and memory, in one way only."""

import importlib.util
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation import event, wire
from node import api, coding
from tests.federation import vectors as v
from tests.fuzz.decoders import DECODERS, INPUT_BYTES_MAX, check, inputs
from tests.fuzz.strategies import mutated, values

MOST_S = 0.010
MOST_BYTES = 1 << 20
ROOT = Path(__file__).parents[2]
LONG = os.environ.get("SEEDS")  # `make test-long` tries more
fuzzed = settings(
    max_examples=2000 if LONG else 200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not LONG
)


@pytest.mark.parametrize("name", DECODERS)
def test_b1_good_seeds_are_read(name: str) -> None:
    """Else nothing here would test more than the first byte."""
    assert any(check(name, raw) for raw in DECODERS[name].seeds)


@pytest.mark.parametrize("name", DECODERS)
def test_b1_seeds_and_findings_are_read_or_refused_quickly_and_in_little_memory(name: str) -> None:
    for raw in inputs(name):
        check(name, raw)  # what is cached now is not counted below
        spent = min(_spent(name, raw) for _ in range(5))
        assert spent <= MOST_S, f"{spent * 1000:.1f} ms for {raw[:60]!r} of {len(raw)} bytes"
    tracemalloc.start()
    for raw in inputs(name):
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        check(name, raw)
        most = tracemalloc.get_traced_memory()[1] - before
        if most > MOST_BYTES:
            tracemalloc.stop()
            pytest.fail(f"{most} bytes for {raw[:60]!r} of {len(raw)} bytes")
    tracemalloc.stop()


def _spent(name: str, raw: bytes) -> float:
    begin = time.process_time()
    check(name, raw)
    return time.process_time() - begin


@pytest.mark.parametrize("name", DECODERS)
def test_b1_noise_and_mutations_are_read_or_refused(name: str) -> None:
    @fuzzed
    @given(st.binary(max_size=300) | mutated(tuple(s for s in DECODERS[name].seeds if len(s) < 5000)))
    def run(raw: bytes) -> None:
        check(name, raw)

    run()


@pytest.mark.parametrize("kind", api.FromClient.__args__, ids=lambda kind: kind.__name__)  # type: ignore[attr-defined]
@pytest.mark.parametrize("codec", [coding.JSON, coding.MSGPACK], ids=["json", "msgpack"])
def test_b2_every_frame_of_a_client_survives(codec: coding.Codec, kind: type) -> None:
    @fuzzed
    @given(values(kind))
    def run(frame: Any) -> None:
        assert codec.from_client(codec.encode(frame)) == frame

    run()


@pytest.mark.parametrize("kind", api.FromNode.__args__, ids=lambda kind: kind.__name__)  # type: ignore[attr-defined]
@pytest.mark.parametrize("codec", [coding.JSON, coding.MSGPACK], ids=["json", "msgpack"])
def test_b2_every_frame_of_a_node_survives(codec: coding.Codec, kind: type) -> None:
    @fuzzed
    @given(values(kind))
    def run(frame: Any) -> None:
        assert codec.from_node(codec.encode(frame)) == frame

    run()


@pytest.mark.parametrize("kind", [*wire.AnyFrame.__args__, wire.Notices], ids=lambda kind: kind.__name__)  # type: ignore[attr-defined]
def test_b2_every_frame_of_a_link_survives(kind: type) -> None:
    decode = wire.decode_notices if kind is wire.Notices else wire.decode

    @fuzzed
    @given(values(kind))
    def run(frame: Any) -> None:
        raw = wire.encode(frame)
        assert decode(raw) == frame
        assert wire.encode(decode(raw)) == raw

    run()


@fuzzed
@given(values(event.Header))
def test_b2_a_header_is_read_as_it_was_written_or_refused(header: event.Header) -> None:
    assert v.read_or_refused(event.decode_header, event._encoder.encode(header), "bad_event") in (header, None)


needed = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python or machine"
)


def guided(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.fuzz", *options]
    env = os.environ | {"TMPDIR": str(folder)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, env=env)


@needed
@pytest.mark.parametrize("name", DECODERS)
def test_b1_a_short_run_guided_by_coverage(name: str, tmp_path: Path) -> None:
    """The same in a process of its own, which atheris ends at the first thing that must not be."""
    done = guided(tmp_path, "--runs", "2000", "--only", name)
    assert done.returncode == 0, done.stderr[-3000:]


@needed
def test_b1_what_is_broken_is_found(tmp_path: Path) -> None:
    """A decoder that lets an untyped error through, which only guidance finds in so many runs."""
    done = guided(tmp_path, "--runs", "200000", "--only", "frame", "--broken")
    assert done.returncode != 0
    assert "this must not be" in done.stdout + done.stderr


def test_inputs_are_no_longer_than_a_frame_of_a_client() -> None:
    assert all(len(raw) <= INPUT_BYTES_MAX for name in DECODERS for raw in inputs(name))
