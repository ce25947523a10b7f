"""Fix the columns of every table of a recording; the number changes when they do.

History: 1 first; 2 (0.1.0) more statistics of activations and parameters, weights after the step, gradient norms before
clipping, loss scale and skipped steps, parameter groups; 3 (0.1.0) number of elements, sites hidden, final_norm and logits;
table logits; 4 (0.1.0) what ranks of one model joined: number of ranks, their smallest and largest loss; table ranks; module path
of identities; 5 (0.1.0) the optimizer's group of a parameter; how far a step's loss fell beside what its gradient promised; 6
(0.1.0) table attributions: samples, positions, totals and errors.
"""

from __future__ import annotations

FORMAT = 6
READABLE = (5, 6)  # 5 never wrote a row of what 6 changes
MOST_TEXT = 10_000  # bytes of one text in a table: no name or sentence is longer

# Column kinds: i integer, f float, s string, b boolean. Absence is null, never 0.
STATISTICS = ("mean", "std", "rms", "absmax", "kurtosis", "zero_share", "mean_share", "channel_absmean", "nonfinite")
PLACE = {"stack": "i", "block": "i", "branch": "s", "depth": "i"}
MOMENT = {"step": "i", "micro_step": "i"}

TABLES: dict[str, dict[str, str]] = {
    "steps": {
        "step": "i",
        "loss": "f",
        "lowest_loss": "f",
        "highest_loss": "f",
        "n_ranks": "i",
        "n_tokens": "i",
        "batch_id": "s",
        "lr": "f",
        "gradient_norm": "f",
        "unclipped_gradient_norm": "f",
        "clip_coefficient": "f",
        "loss_scale": "f",
        "decrease_ratio": "f",
        "is_skipped": "b",
        "memory_bytes": "i",
        "seconds": "f",
        "micro_batches": "i",
        "is_sampled": "b",
    },
    "groups": {"step": "i", "group": "i", "lr": "f", "weight_decay": "f", "gradient_norm": "f"},
    "activations": {
        **MOMENT,
        **PLACE,
        "site": "s",
        "call": "i",
        "direction": "s",
        "module_path": "s",
        "n": "i",
        **dict.fromkeys(STATISTICS, "f"),
        "rounded_share": "f",
    },
    "gradient_paths": {
        **MOMENT,
        **PLACE,
        "skip_gain": "f",
        "skip_rms": "f",
        "branch_rms": "f",
        "cosine": "f",
    },
    "parameters": {
        "step": "i",
        "name": "s",
        "stack": "i",
        "block": "i",
        "branch": "s",
        "role": "s",
        "n": "i",
        "optimizer_group": "i",
        "gradient_state": "s",
        "weight_rms": "f",
        "gradient_rms": "f",
        "gradient_absmax": "f",
        "update_rms": "f",
        "update_ratio": "f",
        "staleness": "f",
        "second_moment_rms": "f",
        "below_epsilon_share": "f",
        "direction_cosine": "f",
    },
    "attention": {
        **MOMENT,
        **PLACE,
        "call": "i",
        "head": "i",
        "logit_max": "f",
        "logit_std": "f",
        "entropy": "f",
        "entropy_ratio": "f",
        "sink_share": "f",
        "logit_bound": "f",
        "n_queries": "i",
        "query_share": "f",
    },
    "tokens": {**MOMENT, **PLACE, "cosine": "f", "angular_distance": "f"},
    "experts": {
        **MOMENT,
        **PLACE,
        "call": "i",
        "expert": "i",
        "gate": "s",
        "load": "f",
        "probability": "f",
        "router_entropy": "f",
        "entropy_ratio": "f",
        "dropped_share": "f",
        "n_tokens": "i",
        "n_chosen": "i",
    },
    "logits": {
        **MOMENT,
        "stack": "i",
        "log_z": "f",
        "log_z_rms": "f",
        "logit_max": "f",
        "n_tokens": "i",
        "token_share": "f",
    },
    "ranks": {
        "step": "i",
        "rank": "i",
        "loss": "f",
        "seconds": "f",
        "memory_bytes": "i",
        "state_rms": "f",
        "gradient_rms": "f",
        "weight_norm": "f",
        "nonfinite": "f",
    },
    "identities": {
        "check": "s",
        **PLACE,
        "module_path": "s",
        "observed": "f",
        "expected": "f",
        "tolerance": "f",
        "note": "s",
    },
    "attributions": {
        "step": "i",
        **PLACE,
        "method": "s",
        "module_path": "s",
        "sample": "i",
        "position": "i",
        "value": "f",
        "standard_error": "f",
        "total": "f",
        "error": "f",
        "note": "s",
    },
    "events": {"step": "i", "kind": "s", "sentence": "s"},
}
