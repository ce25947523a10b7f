"""Read what was attributed: which blocks matter beside which are ill, the ledger of the output, updates, gradients."""

from __future__ import annotations

import pandas as pd

from .finding import SEVERITIES, Finding
from .frames import PLACE, records
from .tables import Tables
from .thresholds import INCOMPLETE, KNOCK_OUT_CERTAIN

BLOCK = ["stack", "block"]


def block_usefulness(tables: Tables, findings: list[Finding] | tuple[Finding, ...] = ()) -> pd.DataFrame:
    """Return one row a block: stack, block, knock_out, standard_error, first_order, angular_distance, is_useful, finding.

    ``knock_out`` is the loss without what the block writes, less the loss; ``first_order`` is what gradient times activation says
    of it; ``is_useful`` whether it raised the loss by more than chance in a model that is predictive, None where that is not
    known; ``finding`` the code of the gravest warning or error about the block, "" without one.
    """
    rows = tables.attributions
    out = rows[rows["method"] == "block_knock_out"].drop_duplicates(BLOCK, keep="last")
    frame = out[[*BLOCK, "value", "standard_error"]].rename(columns={"value": "knock_out"})
    slopes = rows[rows["method"] == "gradient_x_activation"].drop_duplicates(PLACE, keep="last")
    first = -slopes.groupby(BLOCK)["value"].sum().rename("first_order")
    angles = rows[rows["method"] == "angular_distance"].drop_duplicates(BLOCK, keep="last")
    frame = frame.merge(first.reset_index(), on=BLOCK, how="left").merge(
        angles[[*BLOCK, "value"]].rename(columns={"value": "angular_distance"}), on=BLOCK, how="left"
    )
    known = frame["standard_error"].notna()
    certain = (frame["knock_out"] > KNOCK_OUT_CERTAIN * frame["standard_error"]) & is_predictive(tables)
    ill = _ill_blocks(findings)
    names = [ill.get(int(block), "") for block in frame["block"]]
    is_useful = pd.Series(
        [bool(sure) if told else None for sure, told in zip(certain, known, strict=True)], frame.index
    )
    return frame.assign(is_useful=is_useful, finding=names).sort_values(BLOCK, ignore_index=True)


def _ill_blocks(findings: list[Finding] | tuple[Finding, ...]) -> dict[int, str]:
    """Return by block the code of the gravest finding that is more than a remark."""
    found: dict[int, tuple[int, str]] = {}
    for finding in findings:
        rank = SEVERITIES.index(finding.severity)
        if finding.block is not None and rank > 0 and rank > found.get(finding.block, (0, ""))[0]:
            found[finding.block] = (rank, finding.code)
    return {block: code for block, (_, code) in found.items()}


def loss_of_knock_outs(tables: Tables) -> float | None:
    """Return the loss of the batch whose parts were knocked out, None where none were."""
    rows = tables.attributions
    found = rows[(rows["method"] == "loss") & rows["step"].isna()]["value"].dropna()
    return float(found.iloc[-1]) if len(found) else None


def is_predictive(tables: Tables) -> bool:
    """Return whether the model's predictions are certainly better than their own mean over tokens: else no block is of use."""
    rows = tables.attributions
    found = rows[rows["method"] == "gain"].dropna(subset=["value", "standard_error"])
    return bool(len(found)) and bool(found["value"].iloc[-1] > KNOCK_OUT_CERTAIN * found["standard_error"].iloc[-1])


def output_ledger(tables: Tables) -> pd.DataFrame:
    """Return one row a line of the ledger: place, module_path, value, total, error; empty without one."""
    rows = tables.attributions
    found = rows[rows["method"] == "ledger"].drop_duplicates([*PLACE, "module_path"], keep="last")
    return found[[*PLACE, "module_path", "value", "total", "error", "note"]].sort_values(
        ["stack", "depth"], ignore_index=True
    )


def cut_totals(tables: Tables) -> pd.DataFrame:
    """Return one row a cut: place, value, total, error."""
    rows = tables.attributions
    found = rows[rows["method"] == "cut_total"].drop_duplicates(PLACE, keep="last")
    return found[[*PLACE, "value", "total", "error", "note"]].sort_values(["stack", "depth"], ignore_index=True)


def updates(tables: Tables) -> pd.DataFrame:
    """Return one row an update and part: step, place, value, total, error, is_ranked; step -1 where none was given."""
    rows = tables.attributions
    found = rows[rows["method"] == "update"]
    frame = found[["step", *PLACE, "value", "total", "error"]].assign(step=found["step"].fillna(-1).astype(int))
    frame = frame.drop_duplicates(["step", *PLACE], keep="last")
    return frame.assign(is_ranked=frame["error"] <= INCOMPLETE).sort_values(["step", *BLOCK], ignore_index=True)


def from_other_batch(tables: Tables) -> dict[int, float]:
    """Return, by step, what the change of batch alone did to the loss."""
    rows = tables.attributions
    found = rows[rows["method"] == "batch"]
    return {-1 if pd.isna(row["step"]) else int(row["step"]): float(row["value"]) for row in records(found)}


def gradient_shares(tables: Tables) -> pd.DataFrame:
    """Return one row a block and sample, or token: step, stack, block, sample, position, share, error, norm of the gradient."""
    rows = tables.attributions
    keys = ["step", *BLOCK]
    found, norms = rows[rows["method"] == "gradient_share"], rows[rows["method"] == "gradient_norm"]
    found, norms = (frame.assign(step=frame["step"].fillna(-1)) for frame in (found, norms))
    norm = norms.drop_duplicates(keys, keep="last")[[*keys, "value"]].rename(columns={"value": "norm"})
    shares = found.drop_duplicates([*keys, "sample", "position"], keep="last")
    frame = shares[[*keys, "sample", "position", "value", "error"]].rename(columns={"value": "share"})
    return frame.merge(norm, on=keys, how="left")
