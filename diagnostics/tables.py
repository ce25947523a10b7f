"""Derive from a recording's tables the quantities that rules judge and figures draw."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.recording import Recording

from .bounded import bounded, outstanding
from .frames import PLACE, joined
from .norms import norms
from .once import once


@dataclass(frozen=True)
class Tables:
    """A recording, seen as the quantities that matter; every frame is computed once and never written to.

    Of a long run the frames hold whole sampled steps, evenly spread, and those that stand out: see ``bounded``.
    """

    recording: Recording

    @property
    def anatomy(self) -> Anatomy:
        """What discovery found."""
        return self.recording.anatomy

    def placement(self, stack: int) -> str:
        """Return the norm placement of one stack, unknown where the anatomy does not hold it."""
        known = {found.index: found.placement for found in self.anatomy.stacks}
        return known.get(stack, "unknown")

    def stack_name(self, stack: int) -> str:
        """Return words that tell a stack from the others, "" where it is the only one."""
        return f" in stack {stack}" if len(self.anatomy.stacks) > 1 else ""

    @cached_property
    def steps(self) -> pd.DataFrame:
        """The steps table, by step."""
        return self._bounded("steps").sort_values("step", ignore_index=True)

    @cached_property
    def activations(self) -> pd.DataFrame:
        """The activations table; a row without its place says nothing."""
        return self._bounded("activations").dropna(subset=["step", "stack", "block", "depth"])

    @cached_property
    def parameters(self) -> pd.DataFrame:
        """The parameters table; a row without its place says nothing."""
        return self._bounded("parameters").dropna(subset=["step", "block", "name"])

    @cached_property
    def gradient_paths(self) -> pd.DataFrame:
        """The gradient_paths table."""
        return self._bounded("gradient_paths")

    @cached_property
    def events(self) -> pd.DataFrame:
        """The events table."""
        return self.recording.table("events")

    @cached_property
    def identities(self) -> pd.DataFrame:
        """The identities table."""
        return self.recording.table("identities")

    @cached_property
    def attributions(self) -> pd.DataFrame:
        """The attributions table."""
        return self._bounded("attributions")

    @cached_property
    def sampled_steps(self) -> list[int]:
        """Steps with activations, in order; of a long run those that are looked at."""
        return sorted({int(step) for step in self.activations["step"].unique()})

    @cached_property
    def is_long(self) -> bool:
        """Whether some table is too long to be read whole."""
        return any(map(self.recording.is_long, ("steps", "activations", "parameters", "attention")))

    @cached_property
    def losses(self) -> pd.DataFrame:
        """Step and loss of every step, by step, whatever the length of the run."""
        found = self.recording.table("steps", columns=["step", "loss"])
        return found.sort_values("step", ignore_index=True)

    @cached_property
    def _outstanding(self) -> frozenset[int]:
        return outstanding(self.recording)

    @cached_property
    def kept(self) -> dict[tuple[Hashable, ...], Any]:
        """What was derived from these tables: see ``once``."""
        return {}

    @once
    def _bounded(self, name: str) -> pd.DataFrame:
        return bounded(self.recording, name, self._outstanding)

    @once
    def sites(self, site: str, direction: str = "forward") -> pd.DataFrame:
        """Return step, place, rms, absmax, nonfinite of one site, the micro-batches joined.

        The RMS over micro-batches of equal size is the root of the mean of squares; absmax is the largest.
        """
        rows = self.every_site
        chosen = rows[(rows["site"] == site) & (rows["direction"] == direction)]
        return chosen[["step", *PLACE, "absmax", "nonfinite", "rms"]].reset_index(drop=True)

    @cached_property
    def every_site(self) -> pd.DataFrame:
        """What ``sites`` returns, of all sites, with site and direction before it."""
        squared = self.activations.assign(energy=self.activations["rms"] ** 2)
        how = {"energy": "mean", "absmax": "max", "nonfinite": "sum"}
        frame = joined(squared, ["site", "direction", "step", *PLACE], how)
        return frame.assign(rms=np.sqrt(frame["energy"])).drop(columns="energy")

    def state_rms(self) -> pd.DataFrame:
        """Return step, place, rms of every state: the residual stream by depth."""
        return self.sites("state")

    def gradient_profile(self) -> pd.DataFrame:
        """Return step, place, rms of the loss's gradient with respect to every state."""
        return self.sites("state", "backward")

    @once
    def attention(self) -> pd.DataFrame:
        """Return step, place, head, logit_max (the largest), logit_std, entropy, entropy_ratio, sink_share: micro-batches joined.

        Only calls that are known to belong to a branch; its calls within one forward are joined as well.
        """
        rows = self._bounded("attention")
        means = dict.fromkeys(("logit_std", "entropy", "entropy_ratio", "sink_share"), "mean")
        return joined(rows[rows["depth"] >= 0], ["step", *PLACE, "head"], {"logit_max": "max", **means})

    @once
    def attention_by_block(self) -> pd.DataFrame:
        """Return step, stack, block, logit_max, entropy_ratio, sink_share: the largest, lowest and largest over heads."""
        extremes = {"logit_max": "max", "entropy_ratio": "min", "sink_share": "max"}
        return joined(self.attention(), ["step", "stack", "block"], extremes)

    @once
    def busiest_experts(self) -> pd.DataFrame:
        """Return step, stack, block, excess: the busiest expert's load times the number of experts, 1 where it is even."""
        rows = self.experts()
        rows = rows[rows["expert"] >= 0].dropna(subset=["load"])
        frame = joined(rows.assign(n=rows["expert"]), ["step", "stack", "block"], {"load": "max", "n": "nunique"})
        return frame.assign(excess=frame["load"] * frame["n"])

    @once
    def tokens(self) -> pd.DataFrame:
        """Return step, place, cosine, angular_distance of every state, the micro-batches averaged."""
        rows = self._bounded("tokens")
        values = ["cosine", "angular_distance"]
        return rows.groupby(["step", *PLACE], as_index=False, sort=True)[values].mean()

    @once
    def experts(self) -> pd.DataFrame:
        """Return step, place, expert, load, entropy_ratio, dropped_share, micro-batches and calls averaged."""
        rows = self._bounded("experts")
        values = ["load", "entropy_ratio", "dropped_share"]
        return rows[rows["depth"] >= 0].groupby(["step", *PLACE, "expert"], as_index=False, sort=True)[values].mean()

    @once
    def hidden_layers(self) -> pd.DataFrame:
        """Return step, place, kurtosis, zero_share, rms of every MLP's hidden layer, the micro-batches averaged."""
        rows = self.activations[(self.activations["site"] == "hidden") & (self.activations["direction"] == "forward")]
        values = ["kurtosis", "zero_share", "rms"]
        return rows.groupby(["step", *PLACE], as_index=False, sort=True)[values].mean()

    @once
    def log_z(self) -> pd.DataFrame:
        """Return step, stack, log_z, logit_max (the largest), the micro-batches joined."""
        return joined(self._bounded("logits"), ["step", "stack"], {"log_z": "mean", "logit_max": "max"})

    @cached_property
    def norms(self) -> pd.DataFrame:
        """What every norm does, one row a norm and sampled step: see ``norms.norms``."""
        tables = (self.activations, self.gradient_paths, self.parameters)
        return norms(self.anatomy, self.sampled_steps, *tables)

    @once
    def paths(self) -> pd.DataFrame:
        """Return step, place, skip_gain, skip_rms, branch_rms, cosine, the micro-batches averaged."""
        values = ["skip_gain", "skip_rms", "branch_rms", "cosine"]
        return self.gradient_paths.groupby(["step", *PLACE], as_index=False, sort=True)[values].mean()

    @once
    def skip_transmission(self) -> pd.DataFrame:
        """Return step, place, transmission: the gradient's gain along the skip path from the last state to state k.

        1 at the last state; state 0, the embedding, is the row of depth 0. A check-up measures it exactly, by
        vector-Jacobian products along the skip path. A run does not: there the row of depth k is the product of
        ``skip_gain`` over the adds k+1 to K, each the gain of one norm for the whole gradient that arrives there. A gradient
        that keeps to the skips favours the tokens whose norms damp it least: where tokens differ (Xavier init, causal
        attention) it keeps about twice as much over 12 post-norm blocks, .020 against .0097 at width 128. Missing where one
        of the gains is.
        """
        exact = self.identities[self.identities["check"] == "skip_transmission"]
        if len(exact):
            frame = exact.rename(columns={"observed": "transmission"}).assign(step=self.sampled_steps[0])
            return frame.sort_values(["stack", "depth"])[["step", *PLACE, "transmission"]].reset_index(drop=True)
        adds = self.paths().dropna(subset=["step", "stack"]).sort_values(["step", "stack", "depth"], ignore_index=True)
        stacks = adds.groupby(["step", "stack"], sort=False)
        # The product of the gains from add k up is what arrives at the state below it; a gain that is missing hides it.
        up = adds[::-1].groupby(["step", "stack"], sort=False)
        hidden = adds["skip_gain"].isna()[::-1].groupby([adds["step"], adds["stack"]], sort=False).cumsum()
        arriving = up["skip_gain"].cumprod().mask(hidden > 0).sort_index()
        bottom = {"depth": 0, "block": -1, "branch": "embedding"}
        below = adds.assign(transmission=arriving)
        for column, value in bottom.items():
            below[column] = stacks[column].shift(1).where(stacks.cumcount() > 0, value)
        top = stacks.tail(1).assign(transmission=1.0)
        frame = pd.concat([below, top]).sort_values(["step", "stack", "depth"], kind="stable", ignore_index=True)
        whole = dict.fromkeys(("step", "stack", "depth", "block"), int)
        return frame[["step", *PLACE, "transmission"]].astype(whole)

    @once
    def block_transmission(self) -> pd.DataFrame:
        """Return step, stack, transmission from the last state to state 1, the first that a branch has added to.

        The embedding, state 0, is apart: under post-norm its own norm multiplies the gradient by one over its RMS, 50
        for embeddings of std .02, which says nothing about depth.
        """
        found = self.skip_transmission()
        first = found[found["depth"] == 1]
        return first[["step", "stack", "transmission"]].reset_index(drop=True)

    @once
    def bias_share(self) -> pd.DataFrame:
        """Return step, place, bias_share: energy of the last projection's bias over energy of that projection's output.

        |b|^2 / mean over tokens of |W x + b|^2. The output is taken before dropout, output norm and layer scale, since
        after a norm bias and rest can no longer be told apart; dropout scales both energies alike, so that the share of
        the write is the same in expectation. Biases further inside, such as the value's, are not counted. 0 where the
        bias is 0, as at most inits; above 1 where the rest cancels a part of the bias; missing where the output is 0.
        """
        bias = self.sites("bias")[["step", *PLACE, "rms"]]
        output = self.sites("branch_output")[["step", *PLACE, "rms"]]
        both = bias.merge(output, on=["step", *PLACE], suffixes=("_bias", "_output"))
        energy = both["rms_output"] ** 2
        share = both["rms_bias"] ** 2 / energy.where(energy > 0)
        return both[["step", *PLACE]].assign(bias_share=share)

    @once
    def bias_gradient_share(self) -> pd.DataFrame:
        """Return step, stack, block, share: energy of the bias gradients over that of all gradients of the block.

        All biases inside the block count, the norms' included. 0 in a block without biases.
        """
        inside = self.parameters[(self.parameters["block"] >= 0) & self.parameters["gradient_rms"].notna()]
        energy = inside["n"] * inside["gradient_rms"] ** 2
        is_bias = inside["role"].isin(["bias", "norm_bias"])
        summed = inside.assign(energy=energy, bias=energy.where(is_bias, 0.0))
        frame = summed.groupby(["step", "stack", "block"], as_index=False)[["energy", "bias"]].sum()
        share = frame["bias"] / frame["energy"].where(frame["energy"] > 0)
        return frame[["step", "stack", "block"]].assign(share=share)

    def has_biases(self) -> bool:
        """Return whether any block has a bias: in a projection, or in a norm."""
        rows = self.parameters
        return bool(((rows["block"] >= 0) & rows["role"].isin(["bias", "norm_bias"])).any()) or self.anatomy.has_biases

    @once
    def update_ratios(self) -> pd.DataFrame:
        """Return step, stack, block, ratio: update RMS over weight RMS of the block's weight matrices together."""
        rows = self.parameters
        chosen = rows[(rows["block"] >= 0) & (rows["role"] == "weight") & rows["update_rms"].notna()]
        energies = chosen.assign(
            update=chosen["n"] * chosen["update_rms"] ** 2, weight=chosen["n"] * chosen["weight_rms"] ** 2
        )
        frame = energies.groupby(["step", "stack", "block"], as_index=False)[["update", "weight"]].sum()
        ratio = np.sqrt(frame["update"] / frame["weight"].where(frame["weight"] > 0))
        return frame[["step", "stack", "block"]].assign(ratio=ratio)

    @once
    def embedding_gradient(self) -> pd.DataFrame:
        """Return step, rms of the gradient of the embedding tables (parameters, not states)."""
        rows = self.parameters
        chosen = rows[(rows["role"] == "embedding") & rows["gradient_rms"].notna()]
        summed = chosen.assign(energy=chosen["n"] * chosen["gradient_rms"] ** 2).groupby("step", as_index=False)
        frame = summed[["energy", "n"]].sum()
        return frame[["step"]].assign(rms=np.sqrt(frame["energy"] / frame["n"]))

    def identity(self, check: str, stack: int = 0) -> float | None:
        """Return the observed value of one active check, None where it was not made."""
        rows = self.identities
        found = rows[(rows["check"] == check) & (rows["stack"] == stack)]["observed"].dropna()
        return float(found.iloc[-1]) if len(found) else None
