"""Biases or none? What they cannot do, what their gradients are made of, and how both train."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import gap, small, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_least, at_most, curve, steps_of, within
from rheoscope.lab.intervals import Interval, over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, rows_at_best
from rheoscope.lab.measured import kept
from rheoscope.lab.tasks import task
from rheoscope.lab.threads import one_thread
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.recording import Recording
from torch import Tensor

AT_INIT = Architecture(6, 256, 4, vocabulary=1000, context=32, activation="relu", embedding_std=1.0)
POST = replace(AT_INIT, norm_placement="post")
BATCH = 4
PALM = "Chowdhery et al. 2022 (arXiv:2204.02311), PaLM, section 2: no biases, for stability of large models"
SOFTMAX = "softmax(z + c) = softmax(z)"
LAYERNORM = "LayerNorm(x + c) = LayerNorm(x)"


def carry_out(setting: Setting) -> Result:
    """Measure gradients of biases at init in float64, then train with and without biases."""
    seeds = setting.seeds_at_init
    with steps_of(setting, len(seeds)) as begin, one_thread():
        exact: dict[str, list[float]] = {}
        for seed in seeds:
            begin(f"gradients of biases at init, seed {seed}")
            for name, value in at_init(seed).items():
                exact.setdefault(name, []).append(value)
    designs = {"biases": small(setting), "no biases": small(setting, biases=False)}
    frame = trained(designs, setting, every=20)
    best = at_best(frame)
    drift = _drift(frame)
    best["biases / weights"] = [str(drift[max(drift)]) if drift else "", ""]
    stable = best.set_index("label")["largest_stable_lr"]
    claims = [
        *_exact_claims({name: over_seeds(values) for name, values in exact.items()}),
        gap(frame, "no biases", "biases", "about 0; no figure is published", PALM),
        Claim(
            "largest stable learning rate without biases over that with",
            over_seeds([stable["no biases"] / stable["biases"]] if stable.notna().all() else []),
            "above 1 for large models; no figure is published",
            PALM,
            None,
        ),
    ]
    lines = [
        curve("RMS of MLP biases over their weights' against step", "biases", list(drift.items())),
        loss_curves(frame),
    ]
    notes = (
        "That biases hurt stability is told of large models only; here both are shown, and no sign is claimed. What can be "
        "shown at any size is why they may: their gradients add up what all tokens agree on, more so in larger batches.",
    )
    return Result(tuple(claims), best, pd.concat(lines, ignore_index=True), notes=notes)


def at_init(seed: int) -> dict[str, float]:
    """Return what is known exactly of biases at init, and how coherent their gradients are, of one seed."""
    rms_post = replace(POST, norm_kind="rmsnorm")
    found = {
        "key": _key_bias(AT_INIT, seed),
        "key, rotary": _key_bias(replace(AT_INIT, positions="rotary"), seed),
        "mean, layernorm": _mean_direction(POST, seed),
        "mean, rmsnorm": _mean_direction(rms_post, seed),
        "outputs": _change_by_biases(AT_INIT, seed),
    }
    for tokens in ("uniform", "zipf"):
        found[f"ratio, {tokens}"], predicted = coherence(AT_INIT, seed, tokens)
        found[f"ratio over predicted, {tokens}"] = found[f"ratio, {tokens}"] / predicted
    return found


def coherence(design: Architecture, seed: int, tokens: str) -> tuple[float, float]:
    """Return by how much a bias's gradient exceeds its weight's, an element, and what the tokens' cosines predict.

    Of the MLPs' first projections, over blocks, the ratio d E[x^2] |db|^2 / |dW|^2 is (1 + (n - 1) c_g) / (1 + (n - 1) c_x c_g)
    with n tokens, c_x and c_g the mean cosine between the inputs, and the gradients of the outputs, of two of them.
    """
    model = ReferenceTransformer(design, seed=seed).double()
    projections = kept(model, "mlp.up")
    _backward(model, design, seed, tokens)
    ratios, predictions = [], []
    for each in projections:
        x = each.read.detach().flatten(0, 1)
        assert each.given.grad is not None
        g = each.given.grad.flatten(0, 1)
        of_weight, of_bias = g.mT @ x, g.sum(0)
        energy = x.shape[1] * x.square().mean()
        ratios.append(float(energy * of_bias.square().sum() / of_weight.square().sum()))
        n, c_x, c_g = len(x), _pair_cosine(x), _pair_cosine(g)
        predictions.append((1 + (n - 1) * c_g) / (1 + (n - 1) * c_x * c_g))
    return sum(ratios) / len(ratios), sum(predictions) / len(predictions)


def _pair_cosine(x: Tensor) -> float:
    """Return the mean cosine between two rows, weighted with their sizes."""
    whole, own = float(x.sum(0).square().sum()), float(x.square().sum())
    return (whole / own - 1) / (len(x) - 1)


def _backward(model: ReferenceTransformer, design: Architecture, seed: int, tokens: str = "zipf") -> Tensor:
    batch = next(task(tokens)(design.vocabulary, BATCH, design.context, seed))
    output = model(batch[:, :-1], batch[:, 1:])
    output.loss.backward()
    logits: Tensor = output.logits.detach()
    return logits


def _key_bias(design: Architecture, seed: int) -> float:
    """Return the largest gradient of key biases over that of query biases, in float64."""
    model = ReferenceTransformer(design, seed=seed).double()
    _backward(model, design, seed)
    key, query = (
        max(float(_gradient(block.get_parameter(f"attention.{name}.bias")).abs().max()) for block in model.blocks)
        for name in ("key", "query")
    )
    return key / query


def _mean_direction(design: Architecture, seed: int) -> float:
    """Return the largest share of an MLP's last bias's gradient that is in its mean: 1 if all, 0 if none."""
    model = ReferenceTransformer(design, seed=seed).double()
    _backward(model, design, seed)
    gradients = [_gradient(block.get_parameter("mlp.down.bias")) for block in model.blocks]
    return max(float(g.sum().abs() / (len(g) ** 0.5 * g.norm())) for g in gradients)


def _change_by_biases(design: Architecture, seed: int) -> float:
    """Return the largest difference between logits with biases and without at init."""
    with_them, without = (
        _backward(ReferenceTransformer(each, seed=seed), each, seed) for each in (design, replace(design, biases=False))
    )
    return float((with_them - without).abs().max())


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _drift(frame: pd.DataFrame) -> dict[float, Interval]:
    """Return, by step, the RMS of MLPs' biases over that of their weights, of runs at the best learning rate."""
    found: dict[float, list[float]] = {}
    for path in rows_at_best(frame, "biases")["recording"]:
        rows = Recording.load(path).table("parameters", columns=["step", "branch", "role", "weight_rms"])
        rows = rows[rows["branch"] == "mlp"]
        sizes = (
            rows.groupby(["step", "role"])["weight_rms"].apply(lambda each: float((each**2).mean() ** 0.5)).unstack()
        )
        for step, value in zip(sizes.index, sizes["bias"] / sizes["weight"], strict=True):
            found.setdefault(float(step), []).append(float(value))
    return {step: over_seeds(values) for step, values in sorted(found.items())}


def _exact_claims(found: dict[str, Interval]) -> list[Claim]:
    law = "closed form: [1 + (n - 1) c_g] / [1 + (n - 1) c_x c_g]"
    what = f"energy of an MLP bias's gradient over its weight's, an element, {BATCH * AT_INIT.context} {{}} tokens"
    return [
        Claim("gradient of key biases over query biases' (float64)", found["key"], "0", SOFTMAX, at_most(1e-12)),
        Claim(
            "the same with rotary positions", found["key, rotary"], "not 0: the turn depends on the key", SOFTMAX,
            at_least(1e-6),
        ),
        Claim(
            "mean of the gradient of a bias before a LayerNorm, over its size (float64)", found["mean, layernorm"], "0",
            LAYERNORM, at_most(1e-12),
        ),
        Claim(
            "the same before an RMSNorm", found["mean, rmsnorm"], "not 0: RMSNorm keeps the mean", LAYERNORM,
            at_least(1e-3),
        ),
        Claim(
            "largest difference of logits at init, with biases and without", found["outputs"], "0",
            "biases start at 0", (0.0, 0.0),
        ),
        Claim(
            what.format("uniform"), found["ratio, uniform"], "about 1: tokens do not agree", law, (0.8, 1.25),
        ),
        Claim(
            what.format("Zipf"), found["ratio, zipf"], "above 1: biases learn how common each token is", law,
            at_least(1.5),
        ),
        *(
            Claim(
                f"the same over what the cosines predict, {tokens} tokens", found[f"ratio over predicted, {tokens}"], "1",
                law, within(1.0, 0.05),
            )
            for tokens in ("uniform", "zipf")
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "biases",
    "Biases or none: which cannot do anything, what are their gradients made of, and does training differ?",
    "Chowdhery et al. 2022 (PaLM)",
    (4.0, 0.6),
    carry_out,
)
