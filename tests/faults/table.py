"""`python -m tests.faults.table FILE`: what `make faults` found, as a table."""

import sys
from pathlib import Path

HEAD = ("case", "", "rounds", "accepted", "unknown", "lost", "doubled", "seconds")


def table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    found = sorted(tuple(line.split("\t")) for line in Path(sys.argv[1]).read_text().splitlines())
    sys.stdout.write(table([HEAD, *found]) + "\n")
