"""The catalogue of faults: what is planted, how hard, and which findings name it."""

from __future__ import annotations

from dataclasses import dataclass

from .planting import (
    Plant,
    bent,
    bias,
    decay,
    dropout,
    edited,
    epsilon,
    forgotten,
    frozen,
    gain,
    head,
    hooked,
    ill,
    leaking,
    loss,
    no_mask,
    no_norm,
    overridden,
    qk,
    query_scaled,
    rate,
    turned,
    wrapped,
)
from .planting_aside import (
    ahead,
    always_dropping,
    behind,
    constant,
    gradient_clamped,
    head_silent,
    keys_behind,
    linear_mlp,
    norm_halved,
    norm_turned,
    normed_again,
    normed_over_positions,
    one_token_lost,
    other_norm,
    placed_again,
    rank_one,
    samples_mixed,
    shared_mlp,
    turned_otherwise,
    twice,
    values_rounded,
)
from .recipes import block_epsilon, drowned, gap, query_rate


@dataclass(frozen=True)
class Fault:
    """One class of faults.

    Attributes:
        name: of the class.
        plant: ``plant(subject, block, severity)`` damages the subject's model; False where it has no such part.
        severities: from gross to subtle.
        subtle: which of them count as subtle.
        codes: findings that name it, or an equivalent diagnosis.
        components: branches that are right; empty for any.
        is_exact: whether an identity shows it.
        is_local: whether it stands in one block.
        is_aside: kept aside while rules were written.
        is_recipe: whether it shows in training alone; ``plant`` then leaves parameter groups in ``subject.groups``.
    """

    name: str
    plant: Plant
    severities: tuple[float, ...]
    codes: tuple[str, ...]
    subtle: tuple[float, ...] = ()
    components: tuple[str, ...] = ()
    is_exact: bool = False
    is_local: bool = True
    is_aside: bool = False
    is_recipe: bool = False


WEIGHTS = ("weight-scale", "write-size", "write-scale", "hidden-scale")


_IN_ATTENTION, _IN_MLP = ("attention", "parallel"), ("mlp", "parallel")
_BIASES = ("bias-scale", "bias-share", "write-size")
_GAINS = ("gain-scale", "hidden-scale", "attention-logits", "write-size")
_NORMS = ("norm-missing", "norm-placement-odd", "norm-kind-odd", "norm-epsilon")
_DETACHED = ("gradient-detached", "no-gradient")
FAULTS: tuple[Fault, ...] = (
    Fault("attention out scaled", edited("attention_out"), (30, 10, 3, 0.1, 0, 1.2), WEIGHTS, (1.2,), _IN_ATTENTION),
    Fault("mlp out scaled", edited("mlp_out"), (30, 10, 3, 0.1, 0, 1.2), WEIGHTS, (1.2,), _IN_MLP),
    Fault("queries and keys scaled", qk, (12, 6, 3), ("weight-scale", "attention-logits"), (), _IN_ATTENTION),
    Fault("logits scaled", query_scaled, (64, 16, 4, 1.05), ("projection-scale", "attention-logits", "attention-scale"), (1.05,),
          _IN_ATTENTION,),
    Fault("norm gain scaled", gain, (30, 5, 0.1, 0, 1.5, 0.5), _GAINS, (1.5, 0.5)),
    Fault("norm epsilon", epsilon, (100, 1, 0.1), _NORMS, (0.1,)),
    Fault("norm removed", no_norm, (1,), _NORMS),
    Fault("attention bias large", bias("attention_out"), (5, 1, 0.02), _BIASES, (0.02,), _IN_ATTENTION),
    Fault("mlp bias large", bias("mlp_out"), (5, 1, 0.02), _BIASES, (0.02,), _IN_MLP),
    Fault("dead units", bias("mlp_in", -1.0), (20, 5, 2), ("dead-units", "bias-scale", "hidden-scale"), (), _IN_MLP,
          is_aside=True),
    Fault("dropout", dropout, (0.9, 0.5, 0.2), ("dropout-odd",), (), _IN_MLP),
    Fault("frozen block", frozen, (1,), ("frozen-block", "no-gradient")),
    Fault("attention write scaled", wrapped("attention", lambda s: lambda o, _: s * o), (0.5, 0.9, 0.97, 0.99),
          ("write-scale", "write-size"), (0.97, 0.99), _IN_ATTENTION, is_exact=True),
    Fault("mlp write scaled", hooked("mlp", lambda s: lambda o, _: s * o), (0.5, 0.9, 0.97, 0.99),
          ("write-scale", "write-size"), (0.97, 0.99), _IN_MLP, is_exact=True),
    Fault("stream added again", wrapped("block", lambda s: lambda o, x: o + s * x), (1, -0.5, -0.1, -0.03),
          ("odd-block", "skip-scale"), (-0.03,), is_exact=True),
    Fault("attention detached", wrapped("attention", lambda _: lambda o, __: o.detach()), (1,), _DETACHED, (),
          (*_IN_ATTENTION, "parameters"), is_exact=True),
    Fault("mlp detached", overridden("mlp", lambda _: lambda o, __: o.detach()), (1,), _DETACHED, (),
          (*_IN_MLP, "parameters"), is_exact=True),
    Fault("attention gradient scaled", hooked("attention", turned), (-1, 0.1, 10, 0.8, 0.95), ("gradient-scaled",),
          (0.95, 0.8), _IN_ATTENTION, is_exact=True),
    Fault("mlp gradient scaled", wrapped("mlp", bent), (-1, 0.1, 10, 0.8, 0.95), ("gradient-scaled",), (0.95, 0.8), _IN_MLP,
          is_exact=True, is_aside=True),
    Fault("attention leaks", wrapped("attention", leaking), (1, 0.1, 0.01),
          ("mask-leak",), (0.01,), _IN_ATTENTION, is_exact=True),
    Fault("mask missing", no_mask, (1,), ("mask-leak",), (), _IN_ATTENTION, is_exact=True, is_aside=True),
    Fault("tokens pulled together", overridden("block", lambda s: lambda o, _: o + s * (o.mean(1, keepdim=True) - o)),
          (0.99, 0.9), ("mask-leak", "rank-collapse", "odd-block"), is_exact=True, is_aside=True),
    Fault("loss scaled", loss, (1e3, 1e-3, -1), ("loss-scale",), is_exact=True, is_local=False),
    Fault("units in the dip", bias("mlp_in", -1.0), (0.75,), ("activation-trap", "bias-scale", "hidden-scale", "dead-units"), (),
          _IN_MLP),
    Fault("stream too large for bf16", drowned, (3000, 1000), ("rounded-writes", "initial-loss"), is_local=False),
    Fault("learning rate of a block", rate, (100, 30, 0.01), ("update-ratio", "learning-rate-odd"), is_recipe=True),
    Fault("queries and keys learn too fast", query_rate, (100,), ("entropy-collapse", "update-ratio", "weight-scale",
          "attention-logits", "learning-rate-odd"), is_recipe=True),
    Fault("epsilon of a block", block_epsilon, (1, 0.01), ("below-epsilon", "update-ratio"), is_recipe=True),
    Fault("gradients of a block come back after a gap", gap, (1e-3,), ("stale-second-moment",), is_recipe=True),
    Fault("weight decay on gains", decay, (30,), ("gain-scale", "gain-decay"), is_recipe=True, is_aside=True),
    Fault("block not in the optimizer", forgotten, (1,), ("update-ratio", "not-updated"), is_recipe=True, is_aside=True),
    Fault("head scaled", head, (30,), ("initial-loss", "worse-than-guessing"), is_local=False),
    Fault("nan in attention", hooked("attention", ill(lambda o: o + (o.abs() * 0).log())), (1,), ("nonfinite",), (),
          _IN_ATTENTION, is_exact=True),
    Fault("nan in mlp", wrapped("mlp", ill(lambda o: o / (o * 0))), (1,), ("nonfinite",), (), _IN_MLP, is_exact=True),
    Fault("nan on the way back", overridden("mlp", ill(lambda o: o + (o * 0).abs().sqrt())), (1,), ("nonfinite",), (),
          _IN_MLP, is_exact=True, is_aside=True),
    Fault("norm gradient scaled", norm_turned, (-1, 0.5, 0.95), ("norm-backward", "gradient-scaled"), (0.95,), is_exact=True),
    # Rules came after these had been found to be missed.
    Fault("rotary base of a block", turned_otherwise, (4, 0.25), ("attention-positions",), (), _IN_ATTENTION),
    Fault("positions added again", placed_again, (1, 10),
          ("stream-shifted", "odd-block", "skip-scale", "state-unlike-theory"), is_exact=True),
    Fault("dropout in evaluation", always_dropping, (0.5, 0.1), ("dropout-odd", "not-repeatable"), (), _IN_ATTENTION,
          is_exact=True),
    Fault("one head silent", head_silent, (1,), ("head-silent", "write-size"), (), _IN_ATTENTION, is_exact=True),
    Fault("mlp one behind", behind, (1,), ("mask-leak", "positions-mixed"), (), _IN_MLP),
    Fault("samples mixed", samples_mixed, (1,), ("mask-leak", "samples-mixed"), (), _IN_MLP, is_exact=True),
    Fault("no activation", linear_mlp, (1,), ("hidden-scale", "write-size", "activation-odd"), (), _IN_MLP),
    Fault("nothing written at one token", one_token_lost, (1,), ("write-changed", "write-scale", "stream-shifted"), (),
          _IN_ATTENTION, is_exact=True),
    Fault("a write in 8 bits", values_rounded, (1,), ("write-changed", "write-scale", "bf16-error"), (), _IN_MLP, is_exact=True),
    Fault("norm in half precision", norm_halved, (1,), ("norm-form", "bf16-error", "norm-backward", "norm-epsilon")),
    Fault("mlp of the block before", shared_mlp, (1,), ("weight-shared",), (), _IN_MLP, is_exact=True),
    Fault("weights of rank one", rank_one, (1,), ("weight-rank",), (), _IN_MLP),
    Fault("weights of one number", constant, (1,), ("weight-rank", "weight-scale", "hidden-scale", "dead-units"), (), _IN_MLP),
    Fault("keys one behind", keys_behind, (1,), ("projection-changed", "attention-positions"), (), _IN_ATTENTION, is_exact=True),
    # No rule was written for those that follow.
    Fault("attention one ahead", ahead, (1,), ("mask-leak",), (), _IN_ATTENTION, is_exact=True, is_aside=True),
    Fault("other kind of norm", other_norm, (1,), ("norm-kind-odd", "norm-missing", "norm-epsilon", "norm-bias-scale"),
          is_aside=True),
    Fault("mlp runs twice", twice, (1,), ("write-changed", "write-size", "write-scale", "hidden-scale"), (), _IN_MLP,
          is_aside=True),
    Fault("norm over positions", normed_over_positions, (1,), ("mask-leak", *_NORMS), is_aside=True),
    Fault("attention normed again", normed_again, (1,), ("norm-placement-odd", "norm-missing", "write-changed", "write-size"), (),
          _IN_ATTENTION, is_aside=True),
    Fault("attention gradient clamped", gradient_clamped, (1,), ("gradient-scaled",), (), _IN_ATTENTION, is_exact=True,
          is_aside=True),
)  # fmt: skip
