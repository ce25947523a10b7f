"""Change design choices of any model whose anatomy is known: modules are replaced, residual adds and attention rewritten."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.discovery.places import Places, places
from rheoscope.probes.errors import BatchError, LabError
from rheoscope.probes.rewriting import Rewriting
from rheoscope.probes.untouched import untouched
from torch import nn

from .attention_changes import change_attention
from .biases_off import biases_of, take_away
from .choices import Choices
from .norm_changes import change_adds, change_norm_kind, template


@dataclass(frozen=True)
class Change:
    """How to change a model, and every other one that is built like it.

    Attributes:
        choices: what is to be another.
        anatomy: of the model as it is.
        places: where its calls are.
        batch: one that it accepts.
    """

    choices: Choices
    anatomy: Anatomy
    places: Places
    batch: Batch

    def of(self, model: nn.Module) -> nn.Module:
        """Return a changed copy of ``model``, which is left as it is.

        Parameters keep their values; a norm that is applied elsewhere is held where it stood, one level deeper, and a norm that
        the model did not have stands in its child ``added_norms``, with gains of 1 and biases of 0.

        Raises:
            LabError: a choice cannot be made on this model; the sentence says why.
        """
        changed, choices = copied(model), self.choices
        biases = [] if choices.biases is None else biases_of(changed, self.anatomy, self.places)
        with untouched(changed, training=False):
            if choices.norm_kind is not None and self.anatomy.norm_kind != "none":
                change_norm_kind(changed, self.anatomy, choices.norm_kind)
            like = None
            if choices.norm_placement not in (None, "none") or choices.qk_norm:
                like = template(changed, self.anatomy, choices.norm_kind)
        rewriting = Rewriting()
        if choices.norm_placement is not None or choices.skip_scale is not None:
            change_adds(changed, self.anatomy, self.places, choices, like, rewriting)
        if choices.qk_norm is not None or choices.soft_cap is not None:
            change_attention(changed, self.anatomy, self.places, choices, like, rewriting)
        if rewriting.calls or rewriting.points:
            rewriting.install(changed)
        if biases:
            take_away(changed, biases, self.batch)
        self._check(changed)
        return changed

    def _check(self, changed: nn.Module) -> None:
        """Run one forward: what cannot be changed shows here."""
        with untouched(changed, training=False), torch.no_grad():
            try:
                call(changed, self.batch)
            except BatchError as error:
                if isinstance(error.__cause__, LabError):
                    raise error.__cause__ from None
                raise LabError(
                    f"Expected the changed model to run, got an error: {str(error.__cause__ or error)[:300]}. Its code asks "
                    "for something of what was changed."
                ) from error


def change(model: nn.Module, batch: Batch, anatomy: Anatomy, choices: Choices) -> Change:
    """Return how to make ``choices`` on ``model``; one traced forward.

    Raises:
        LabError: the anatomy has gaps, or the choices do not fit it.
    """
    choices.check(anatomy)
    return Change(choices, anatomy, places(model, batch, anatomy), batch)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares nothing with it, without gradients.

    Raises:
        LabError: it holds something that cannot be copied.
    """
    try:
        found: nn.Module = copy.deepcopy(model)
    except Exception as error:
        raise LabError(
            f"Expected a model that copy.deepcopy copies, got {type(error).__name__}: {str(error)[:200]}. Remove results that "
            "it keeps from an earlier forward."
        ) from error
    for parameter in found.parameters():
        parameter.grad = None
    return found
