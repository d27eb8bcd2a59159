"""Many seeded runs of whole nodes under crashes, cuts and partitions; and proof that the runs can fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.broken import BUILDS
from tests.sim.world import simulate

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("SEEDS", "200"))
CHUNK = 10  # seeds in one test, so that workers share them evenly
TWICE = range(1, 11)
BROKEN = range(1, 31)  # a broken build must be found within these


@pytest.mark.parametrize("first", range(1, SEEDS + 1, CHUNK))
def test_every_promise_holds_under_faults(first: int) -> None:
    seeds = range(first, min(first + CHUNK, SEEDS + 1))
    found = {seed: violations for seed in seeds if (violations := simulate(seed).violations)}
    assert not found, f"replay with `make sim SEED={next(iter(found))} TRACE=1`"


@pytest.mark.parametrize("seed", TWICE)
def test_one_seed_is_one_run(seed: int) -> None:
    assert simulate(seed).trace == simulate(seed).trace


def test_a_run_does_not_depend_on_the_process() -> None:
    """Hash seeds and addresses differ between processes; what happens must not."""
    runs = [
        subprocess.run(
            [sys.executable, "-m", "tests.sim", "4", "--trace"],
            cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]


@pytest.mark.parametrize("build", BUILDS)
def test_a_broken_build_is_found(build: str) -> None:
    for seed in BROKEN:
        with BUILDS[build]() as runner:
            violations = simulate(seed, runner).violations
        if violations:
            return
    pytest.fail(f"the build {build} passed {len(BROKEN)} seeds")
