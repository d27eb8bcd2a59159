"""Replay one run: `python -m tests.sim SEED [--trace]`, or SEED and TRACE in the environment (`make sim SEED=7`).

Prints one message's way through the run, or the whole trace, and what was found. Exits 1 when a promise broke.
"""

import os
import sys


def main() -> int:
    if os.environ.get("PYTHONHASHSEED", "random") == "random":
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], environment)
    from tests.sim.world import simulate

    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    seed = int(words[0] if words else os.environ.get("SEED") or 1)
    whole = "--trace" in sys.argv or os.environ.get("TRACE", "") not in ("", "0")
    outcome = simulate(seed)
    if whole:
        lines = outcome.trace
    else:
        # The message with the most to tell.
        paths = [outcome.world.path(write.key) for write in outcome.world.plan.writes]
        lines = [str(line) for line in max(paths, key=len)]
    for line in lines:
        print(line)
    plan, lives = outcome.world.plan, sum(host.lives for host in outcome.world.hosts.values())
    print(
        f"seed {seed}: {len(plan.hosts)} nodes in {lives} lives, {len(plan.writes)} messages, "
        f"{len(plan.faults)} faults, {outcome.world.loop.time():.0f} virtual seconds"
    )
    for violation in outcome.violations:
        print(f"BROKEN: {violation}")
    if not outcome.violations:
        print("nothing lost, nothing twice, one order")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
