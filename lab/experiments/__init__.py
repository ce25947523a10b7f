"""Controlled experiments, one file each."""

from __future__ import annotations

from importlib import import_module

import pandas as pd
from rheoscope.lab.experiment import Experiment
from rheoscope.probes.errors import LabError

# Name -> module; each holds one EXPERIMENT.
_MODULES = {
    "norm-placement": "norm_placement",
    "norm-kind": "norm_kind",
    "biases": "bias_terms",
    "placement-biases-depth": "placement_biases_depth",
    "activations": "activations",
    "parallel": "parallel",
    "stability-tricks": "stability_tricks",
    "depth-and-init": "depth_and_init",
    "positions": "position_kinds",
    "shared-heads": "shared_heads",
    "glu": "gates",
    "mlp-ratio": "mlp_ratio",
    "heads": "head_sizes",
    "aspect": "aspect_ratio",
    "repeated-data": "repeated_data",
    "regularisation": "regularisation",
    "embedding-scale": "embedding_scale",
    "admin": "admin",
    "double-norm": "double_norm",
    "ivanov": "ivanov",
    "olmo2": "olmo2",
    "optimization": "optimization",
    "takase": "takase",
    "vocabulary": "vocabulary",
    "wortsman": "wortsman",
    "xiong": "xiong",
}
NAMES = tuple(_MODULES)


def listing() -> pd.DataFrame:
    """Return one row an experiment: its name, question, source and time."""
    rows = [experiment(name) for name in NAMES]
    return pd.DataFrame(
        [
            (each.name, each.question, each.source, f"{each.minutes[0]:g} min, {each.minutes[1]:g} quick")
            for each in rows
        ],
        columns=["experiment", "question", "source", "time on 2 cores"],
    )


def experiment(name: str) -> Experiment:
    """Return the experiment of this name.

    Raises:
        LabError: there is none.
    """
    if name not in _MODULES:
        raise LabError(f"Expected one of the experiments {', '.join(NAMES)}, got {name!r}. See rheoscope lab list.")
    found: Experiment = import_module(f"{__name__}.{_MODULES[name]}").EXPERIMENT
    return found
