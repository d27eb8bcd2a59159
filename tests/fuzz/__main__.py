"""`python -m tests.fuzz --seconds 60`: every decoder under atheris; `--runs N` and `--only NAME` for a short one.

What ends a run is written beside the corpus as `crash-...`: keep it there under a name that says what it is, with the
fix. Inputs that reach something new stay out of the repository.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

if "--here" in sys.argv:  # in the process that fuzzes, our own modules are loaded so that they tell where they go
    import atheris

    with atheris.instrument_imports(include=["federation", "node"]):
        importlib.import_module("tests.fuzz.decoders")
from tests.fuzz.decoders import CORPUS, DECODERS, INPUT_BYTES_MAX, check, inputs


def one(name: str, rest: list[str], broken: bool) -> None:
    """Fuzz in this process, which atheris ends."""

    def run(raw: bytes) -> None:
        check(name, raw)
        if broken and raw[:2] == b"\x82\xa1" and len(raw) > 3 and raw[2] == 0x21:
            raise RuntimeError("this must not be")

    atheris.Setup([sys.argv[0], *rest], run)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--only", choices=DECODERS)
    parser.add_argument("--broken", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.here:
        one(given.only, rest, given.broken)
    failed = []
    for name in [given.only] if given.only else DECODERS:
        with tempfile.TemporaryDirectory() as folder:
            for number, raw in enumerate(inputs(name)):
                Path(folder, f"{number}.bin").write_bytes(raw)
            bound = [f"-runs={given.runs}"] if given.runs else [f"-max_total_time={given.seconds}"]
            options = [f"-max_len={INPUT_BYTES_MAX}", "-timeout=5", "-rss_limit_mb=2048", "-verbosity=0"]
            keep = tempfile.gettempdir() if given.broken else str(CORPUS)
            command = [sys.executable, "-m", "tests.fuzz", "--here", "--only", name, *(["--broken"] * given.broken)]
            where = f"-artifact_prefix={keep}/crash-{name.replace(' ', '_')}-"
            print(f"{name}:", flush=True)
            done = subprocess.run([*command, *bound, *options, where, "-seed=1", folder], env=os.environ)
            print(f"{name}: {'FAILED' if done.returncode else 'ok'}", flush=True)
            if done.returncode:
                failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
