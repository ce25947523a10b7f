"""Ask what one changed design choice does to the user's own model: on its weights as they are, and trained from fresh ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from rheoscope.diagnostics.comparison import Comparison
from rheoscope.probes.batches import Batch
from rheoscope.probes.check_up import examine
from rheoscope.probes.discovery.dissect import discover
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.recording import Recording
from rheoscope.probes.untouched import untouched
from rheoscope.probes.wrappers import bare
from torch import nn

from .changes import change
from .choices import Choices
from .fresh import Fresh, Make
from .retrained import Build, OnProgress, Training, retrained, told
from .short_run import MakeOptimizer, adamw

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
AS_IT_IS = "as it is"
GIVEN, RETRAINED = "on the weights given", "retrained from fresh weights"

ABLATION = (
    "On the weights given this is an ablation: they were made for the model as it is, and miss what the change takes away. "
    "A claim about the architecture comes only from the retrained copies."
)
NOT_TRAINED = "No copy was retrained (n_steps=0): nothing here is a claim about the architecture."
ONE_BATCH = "The copies saw the one batch given again and again: what they tell is how fast it is learned, nothing of other data."

FROZEN = "{} biases are set to 0 and frozen rather than removed: their modules do not run without."


def what_if(
    model: nn.Module,
    batch: Batch,
    *,
    norm_placement: str | None = None,
    norm_kind: str | None = None,
    biases: bool | None = None,
    qk_norm: bool | None = None,
    soft_cap: float | None = None,
    skip_scale: float | None = None,
    loss_fn: LossFunction | None = None,
    batches: Iterable[Batch] | None = None,
    n_steps: int = 200,
    make: Make | None = None,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = (0, 1, 2),
    make_optimizer: MakeOptimizer = adamw,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Compare a model with itself after a change of one design choice, or of several at once.

    Both are examined on the weights given. Then copies of both are trained from the same fresh weights, each at its own best
    learning rate. The model itself is left bit-identical: weights, buffers, gradients, hooks, flags, random state.

    A norm that moves keeps its parameters; one that the model did not have begins with gains of 1 and biases of 0. A stack that
    is turned to post or no norms loses its final norm, one that is turned from these to another placement gets one; state 0 is
    normed by none.

    Args:
        model: any PyTorch transformer whose anatomy is complete, on which ``copy.deepcopy`` works.
        batch: what its training loop passes: a tensor, a tuple of arguments, or a mapping of keywords.
        norm_placement: pre, post, double, reordered or none, of every branch.
        norm_kind: layernorm or rmsnorm, of every norm around the stream; gains, biases and epsilons are kept.
        biases: False takes the biases of projections and norms away; the head keeps its own.
        qk_norm: True norms queries and keys, head by head, where they meet (behind rotary positions, where there are any); False
            takes such norms away.
        soft_cap: bound of attention's logits, which become cap * tanh(logits / cap); 0 takes one away.
        skip_scale: factor of the skip operand in every residual add, as DeepNorm's alpha.
        loss_fn: ``loss_fn(output, batch)`` returns a scalar; None as for ``examine``.
        batches: to train on, again from the first where they run out; the one batch where none are given.
        n_steps: optimizer steps of every copy; 0 to train none.
        make: returns a new model like this one, with the weights that it is to begin with; without it every parameter of this
            one is drawn anew, and the result says so.
        rates: learning rates that are tried.
        seeds: of the fresh weights; the first chooses the learning rate, all give the interval of the last loss.
        make_optimizer: returns the optimizer of a model and a learning rate; AdamW by default.
        on_progress: called with (runs done, runs in all, what is next).

    Returns:
        A comparison of two variants, "as it is" and "changed: ...", on the weights given and, where copies were trained,
        retrained; its notes say what each part can tell.

    Raises:
        LabError: no choice is given, it contradicts the model, or the anatomy has gaps; the sentence names what is missing.
        BatchError: the model rejects the batch, or no loss can be made of its output.
        DiscoveryError: the model has no residual stream.
    """
    choices = Choices(norm_placement, norm_kind, biases, qk_norm, soft_cap, skip_scale)
    training = None
    if n_steps != 0:
        given = [batch] if batches is None else list(islice(batches, max(0, n_steps)))
        training = Training(given, n_steps, tuple(sorted(rates)), tuple(seeds), loss_fn, make_optimizer)
    model = bare(model)
    labels = (AS_IT_IS, f"changed: {choices.label}")
    with untouched(model):
        anatomy = discover(model, batch)
        altered = change(model, batch, anatomy, choices)
        pair = dict(zip(labels, (model, altered.of(model)), strict=True))
        frozen = _frozen(*pair.values())
        recordings = {
            f"{label}, {GIVEN}": _named(examine(each, batch, loss_fn, label=f"{label}, {GIVEN}"), label, GIVEN)
            for label, each in pair.items()
        }
        if training is None:
            return Comparison(recordings, title=_title(choices), notes=(ABLATION, NOT_TRAINED, *frozen))
        fresh = Fresh(model, anatomy, make)
        builds: dict[str, Build] = dict(zip(labels, (fresh.of, lambda seed: altered.of(fresh.of(seed))), strict=True))
        found = retrained(builds, training, on_progress)
        at_init = {}
        for label, build in builds.items():
            name = f"{label}, {RETRAINED}"
            recordings[name] = _named(found[label].recording, label, RETRAINED)
            start = examine(build(training.seeds[0]), batch, loss_fn, label=f"{name}, at init")
            at_init[name] = _named(start, label, RETRAINED)
    one_batch = [ONE_BATCH] if len(training.batches) == 1 else []
    notes = (ABLATION, *told(found, training), fresh.told, *one_batch, *frozen)
    return Comparison(recordings, at_init, title=_title(choices), notes=notes)


def _frozen(model: nn.Module, changed: nn.Module) -> list[str]:
    """Say how many biases are there still, at 0, because a module's code asks for them."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = [name for name, parameter in changed.named_parameters() if name in trained and not parameter.requires_grad]
    return [FROZEN.format(len(kept))] if kept else []


def _named(recording: Recording, label: str, group: str) -> Recording:
    recording.manifest |= {
        "group": group,
        "variant": label,
        "label": recording.manifest.get("label") or f"{label}, {group}",
    }
    return recording


def _title(choices: Choices) -> str:
    return f"What if: {choices.label}"
