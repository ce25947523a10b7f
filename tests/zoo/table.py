"""Write the zoo's table: counts first, then every failure with its cause, then one row a type."""

from __future__ import annotations

from collections import Counter

import torch
import transformers

from .examine import Row
from .reasons import REASONS

_GOOD = ("right", "right, incomplete", "right, in doubt")


def written(rows: list[Row]) -> str:
    """Return docs/zoo.md."""
    counts = Counter(row["outcome"] for row in rows)
    built = [row for row in rows if row["outcome"] not in ("not built", "timeout")]
    right = [row for row in built if is_right(row)]
    known = [row for row in built if row.get("known")]
    confident = sum(row["outcome"] == "wrong and confident" and not is_right(row) for row in built)
    summary = (
        f"Every model type of transformers {transformers.__version__} (torch {torch.__version__}), built small from a "
        "shrunk configuration with random weights, discovered, and judged. Written by `make zoo`."
    )
    share = (
        f"- {len(right)} of {len(built)} right ({_share(len(right), len(built))}): all of the model's own hidden "
        "states are among the discovered ones, or it is no residual transformer and discovery says so, or the reason "
        "why the oracle does not apply is given."
    )
    complete = (
        f"- {sum(bool(row.get('complete')) for row in built)} complete: every add certified by plain hooks; the "
        "others say what is hidden."
    )
    legend = (
        "stacks: adds of each stack. ledger: largest relative error of sum = scale * skip + write. hooks: whether "
        "plain hooks see every state and every write."
    )
    lines = [
        "# The zoo",
        "",
        summary,
        "",
        f"- {len(rows)} types; {len(built)} built and ran; {len(rows) - len(built)} not (cause in the last table).",
        share,
        complete,
        f"- {confident} wrong and confident.",
        f"- {sum(row['known'] == 'right' for row in known)} of {len(known)} known placements right.",
        "",
        "## Outcomes",
        "",
        "| outcome | types |",
        "|---|---|",
        *(f"| {name} | {number} |" for name, number in counts.most_common()),
        "",
        "## What is not right, and why",
        "",
        "| type | outcome | cause |",
        "|---|---|---|",
        *(f"| {row['type']} | {row['outcome']} | {_cell(_cause(row))} |" for row in built if not is_right(row)),
        "",
        "## Right by a corrected oracle",
        "",
        "| type | reason |",
        "|---|---|",
        *(f"| {r['type']} | {_cell(REASONS[r['type']])} |" for r in built if r["type"] in REASONS and is_right(r)),
        "",
        "## Types",
        "",
        legend,
        "",
        "| type | stacks | placement | norm | parallel | ledger | hooks | oracle | known | outcome | what is open |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in built),
        "",
        "## Not built",
        "",
        "| type | cause |",
        "|---|---|",
        *(f"| {r['type']} | {_cell(r['cause'])[:300]} |" for r in rows if r["outcome"] in ("not built", "timeout")),
        "",
    ]
    return "\n".join(lines)


def is_right(row: Row) -> bool:
    """Whether a row's outcome is right, by the oracle or by a reason given for this type."""
    return row["outcome"] in _GOOD or (row["outcome"] != "crashed" and row["type"] in REASONS)


def _line(row: Row) -> str:
    if "stacks" not in row:
        return f"| {row['type']} | | | | | | | | | {row['outcome']} | {_cell(row['cause'])[:160]} |"
    error = row["ledger"]
    hooks = "enough" if not row["hidden_writes"] and not row["hidden_sums"] else (
        f"{row['hidden_writes']} writes, {row['hidden_sums']} sums hidden"
    )  # fmt: skip
    found = ", ".join(f"{name} {number}" for name, number in row["found"].items())
    cells = [
        row["type"],
        "+".join(map(str, row["stacks"]))
        + ("" if max(row["multi"], default=1) == 1 else f" of {max(row['multi'])} streams"),
        _counted(row["placement"]),
        _counted(row["norm_kind"]),
        "yes" if row["parallel"] else "",
        "" if error is None else f"{error:.0e}",
        hooks,
        row["oracle"] + (f" ({found})" if found and set(row["found"]) != {"same"} else ""),
        row["known"],
        row["outcome"],
        _cell("; ".join(row["problems"][:2]))[:240],
    ]
    return "| " + " | ".join(cells) + " |"


def _cause(row: Row) -> str:
    known = REASONS.get(row["type"], "")
    missing = f"hidden states not found: {', '.join(row['missing'])}. " if row.get("missing") else ""
    return f"{known} {missing}{row.get('cause', '')} {' '.join(row.get('problems', [])[:1])}".strip()[:500]


def _counted(found: dict[str, int]) -> str:
    return ", ".join(name if len(found) == 1 else f"{name} {number}" for name, number in found.items())


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "/")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
