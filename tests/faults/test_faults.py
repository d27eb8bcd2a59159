"""`make faults` runs all rounds of every case and prints a table; `make test` runs a few rounds of each.

After each case everything that was accepted must be there, once and in order; and each case must be able to fail:
the broken builds that it is there for do fail it.
"""

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.faults import nets
from tests.faults.cases import CASES
from tests.faults.disks import unmount
from tests.faults.person import Wrong
from tests.faults.town import Report, Town

WHOLE = os.environ.get("FAULTS") == "all"
TABLE = os.environ.get("FAULTS_TABLE", "")
BROKEN_S = 15  # how long a broken build may take to deliver what the good one delivers
CAUGHT = [(name, build) for name, case in CASES.items() for build in case.caught]
FEW = [("C2", "acknowledges_before_commit"), ("C3", "dedupe_off"), ("C4", "commits_without_sync")]

pytestmark = pytest.mark.timeout(1200 if WHOLE else 240)


def have(name: str) -> None:
    """Skip, by name, where the machine lacks what the case needs; with CI=true that is a failure."""
    missing = [tool for tool in CASES[name].needs if tool != "netns" and shutil.which(tool) is None]
    if not missing and "netns" in CASES[name].needs and (reason := nets.missing()):
        missing = [f"network namespaces: {reason}"]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{name} needs {', '.join(missing)}")
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")


def made(name: str, folder: Path, build: str = "", whole: bool = WHOLE) -> Town:
    case = CASES[name]
    return case.town(folder, case.nodes, build, **({} if whole else case.sets))


def _append(line: str) -> None:
    with Path(TABLE).open("a") as file:
        file.write(line)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if WHOLE or case.few])
async def test_nothing_accepted_is_lost_or_doubled(name: str, tmp_path: Path) -> None:
    have(name)
    started = time.monotonic()
    town = made(name, tmp_path)
    report = Report()
    try:
        if (before := CASES[name].before) is not None:
            before(town)
        await town.open()
        await CASES[name].run(town, WHOLE)
        report = await town.check()
        assert (report.lost, report.doubled) == (0, 0), report
        for node in town.nodes.values():
            if node.up.is_set():
                assert await node.stop() == 0, node.said()
            node.sound()
    finally:
        await town.close()
        unmount(town)
        if TABLE:
            line = f"{name}\t{CASES[name].title}\t{report.row()}\t{time.monotonic() - started:.0f}\n"
            _append(line)


@pytest.mark.parametrize(("name", "build"), CAUGHT if WHOLE else FEW)
async def test_a_broken_build_fails(name: str, build: str, tmp_path: Path) -> None:
    have(name)
    town = made(name, tmp_path, build, whole=False)
    try:
        await town.open()
        try:
            await CASES[name].run(town, False)
            report = await town.check(BROKEN_S)
        except (Wrong, TimeoutError):
            return
        assert report.lost or report.doubled, f"{name} does not notice {build}: {report}"
    finally:
        await town.close()
