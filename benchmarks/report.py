"""Run the benchmarks one after the other and write what they print as a page: python benchmarks/report.py [page]."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
HEAD = """# What probes cost

Written by `make bench`. CPU time, one thread; every number is of this machine and this day. "Inside callbacks" is the CPU time
inside our hooks over the rest of the step, with an error of about 0.3 points; "whole loop" compares whole loops in pairs, caches
and dispatch included, with the quartiles as its error. The control reads each measured tensor once, each gradient, weight and
former weight too, through the same hooks, and computes nothing but a sum: no instrument that looks at every element can be
cheaper. Naive hooks compute the same statistics by torch's obvious operations, `.item()` and full backward hooks.

What the set reads beyond the control: under Adam four numbers an element of a parameter (gradient, weight, both moments) for its
three; the gradient of a sum once more where it meets that of the state before; queries and keys, for their sizes; 256 tokens of
every state and of the logits, once more. The rest is Python: between two products of matrices a callback finds nothing of itself
in the caches, and takes several times what it takes in a loop of its own.

"""
PARTS = (
    ("Overhead", "overhead.py"),
    ("Launches and bytes on a GPU", "launches.py"),
    ("Peers", "peers.py"),
    ("A long run", "soak.py"),
    ("Recording size", "scale.py"),
    ("Reports", "pages.py"),
    ("Discovery and check-up", "discovery_cost.py"),
)


def main(page: str = "") -> None:
    """Write the page, or print it."""
    text = HEAD
    for title, script in PARTS:
        run = subprocess.run([sys.executable, str(HERE / script)], stdout=subprocess.PIPE, text=True, check=True)
        text += f"## {title}\n\n{run.stdout.strip()}\n\n"
    if page:
        Path(page).write_text(text.rstrip() + "\n", encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:2])
