"""``make fuzz``: mutate recordings, hand each to the commands that read them, and write the counts to docs/fuzzing.md."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.progress import track

from .mutations import MUTATIONS
from .sound import sound
from .trial import Outcome, tried

KINDS = ("read", "clear error", "traceback", "crash", "no answer", "reached outside")
Trial = tuple[str, int, list[Outcome]]


def main() -> None:
    """Try as many recordings as asked for; exit 1 when a command failed on one."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=1_040, help="mutated recordings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/fuzzing.md"))
    given = parser.parse_args()
    found = list(track(trials(given.n, given.seed), total=given.n, description="fuzz"))
    given.output.write_text(written(found, given.seed), encoding="utf-8")
    sys.stdout.write(f"{given.output}\n")
    sys.exit(any(outcome.kind not in KINDS[:2] for _, _, outcomes in found for outcome in outcomes))


def trials(n: int, seed: int) -> Iterator[Trial]:
    """Yield the mutation, its seed and what the commands did, of ``n`` mutated recordings."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        originals = sound(base)
        (base / "secret.txt").write_text("not yours")
        for index in range(n):
            mutation = MUTATIONS[index % len(MUTATIONS)]
            chance = random.Random(f"{seed} {index}")
            folder, scratch = base / "mutant", base / "scratch"
            shutil.copytree(chance.choice(originals), folder)
            scratch.mkdir()
            mutation(folder, chance)
            before = _listing(base)
            outcomes = tried(folder, originals[0], scratch)
            if _listing(base) != before:
                outcomes.append(Outcome("all", "reached outside", "files beside the output changed"))
            yield mutation.__name__, index, outcomes
            shutil.rmtree(folder)
            shutil.rmtree(scratch)


def _listing(base: Path) -> list[tuple[str, int]]:
    paths = (path for path in base.rglob("*") if "scratch" not in path.parts)
    return sorted((str(path), path.lstat().st_mtime_ns) for path in paths)


def written(found: list[Trial], seed: int) -> str:
    """Return docs/fuzzing.md."""
    total = Counter(outcome.kind for _, _, outcomes in found for outcome in outcomes)
    lines = [
        "# Recordings from strangers",
        "",
        f"Written by `make fuzz` (seed {seed}): {len(found):,} mutated recordings, each handed to `rheoscope check`, `report`, "
        f"`compare` and, as the stage of a pipeline, `join`, {sum(total.values()):,} commands in processes of their own. A "
        "command may read what is sound, or refuse in one sentence with exit code 3; it may write to the file that it was told "
        "to, start no process, open no "
        "connection and unpickle nothing, which an audit hook of the interpreter watches.",
        "",
        "| mutation | recordings | " + " | ".join(KINDS) + " |",
        "|---" * (len(KINDS) + 2) + "|",
    ]
    for mutation in MUTATIONS:
        of_it = [outcomes for name, _, outcomes in found if name == mutation.__name__]
        counts = Counter(outcome.kind for outcomes in of_it for outcome in outcomes)
        lines.append(_line(mutation.__name__.replace("_", " "), len(of_it), *(counts[kind] for kind in KINDS)))
    lines.append(_line("all", len(found), *(total[kind] for kind in KINDS)))
    bad = [(name, index, o) for name, index, outcomes in found for o in outcomes if o.kind not in KINDS[:2]]
    if bad:
        lines += ["", "## What failed", ""]
        lines += [
            f"- {name} {index}, {o.command}: {o.kind}: {' '.join(o.detail.split())[-400:]}" for name, index, o in bad
        ]
    return "\n".join(lines) + "\n"


def _line(*cells: object) -> str:
    return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
