"""The design choices that a what-if changes, each a field; None leaves a choice as it is."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.errors import LabError

PLACEMENTS = ("pre", "post", "double", "reordered", "none")
KINDS = ("layernorm", "rmsnorm")
_WORDS = {
    "norm_placement": "{} norm placement",
    "norm_kind": "{}",
    "biases": "biases off",
    "qk_norm": "QK-norm {}",
    "soft_cap": "soft cap {}",
    "skip_scale": "skips times {}",
}


@dataclass(frozen=True)
class Choices:
    """What is to be another.

    Attributes:
        norm_placement: pre, post, double, reordered or none, of every branch.
        norm_kind: layernorm or rmsnorm, of every norm around the stream; gains, biases and epsilons are kept.
        biases: False takes the biases of projections and norms away.
        qk_norm: whether queries and keys are normed; norms that are put in stand where queries meet keys, head by head.
        soft_cap: bound of the logits of attention, which become cap * tanh(logits / cap); 0 takes one away.
        skip_scale: factor of the skip operand in every residual add.

    Raises:
        LabError: no field is given, or one has no known value.
    """

    norm_placement: str | None = None
    norm_kind: str | None = None
    biases: bool | None = None
    qk_norm: bool | None = None
    soft_cap: float | None = None
    skip_scale: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if not self.given:
            raise LabError(
                f"Expected a choice to change, got none. Pass one of {', '.join(field.name for field in fields(self))}."
            )
        for name, known in (("norm_placement", PLACEMENTS), ("norm_kind", KINDS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise LabError(f"Expected {name} to be one of {known}, got {value!r}. Pass one of these.")
        if self.biases:
            raise LabError(
                "Expected biases=False, got True: where a projection without a bias would add one is the model's own code. "
                "Build the model with biases and take them away."
            )
        if self.soft_cap is not None and not self.soft_cap >= 0:
            raise LabError(f"Expected soft_cap >= 0, got {self.soft_cap}. Pass 0 to take one away.")
        if self.skip_scale is not None and not self.skip_scale > 0:
            raise LabError(f"Expected skip_scale > 0, got {self.skip_scale}. Pass a positive number.")
        if self.norm_placement == "none" and self.norm_kind is not None:
            raise LabError("Expected norm_kind only with norms, got norm_placement='none' too. Set one or the other.")

    @property
    def given(self) -> dict[str, object]:
        """The choices that are not left as they are, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @property
    def label(self) -> str:
        """All that is changed, in words."""
        spoken = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm", True: "on", False: "off"}
        return ", ".join(
            _WORDS[name].format(spoken.get(value, value) if isinstance(value, bool | str) else f"{value:g}")
            for name, value in self.given.items()
        )

    def check(self, anatomy: Anatomy) -> None:
        """Say why the choices cannot be made on a model of this anatomy.

        Raises:
            LabError: the anatomy is not complete, the choice is made already, or what it would change is not known.
        """
        if not anatomy.is_complete:
            why = anatomy.problems[0] if anatomy.problems else "its residual adds are not certified."
            raise LabError(f"Expected a model whose residual stream is known whole, got one with a gap: {why}")
        mixed = [stack for stack in anatomy.stacks if stack.n_streams > 1]
        if mixed:
            raise LabError(
                f"Expected one stream a stack, got {mixed[0].mixing} in stack {mixed[0].index}. No what-if is defined there."
            )
        kinds = {branch.norm_kind for branch in anatomy.branches} - {"none"}
        kind = next(iter(kinds)) if len(kinds) == 1 else None
        for name, now in (("norm_placement", anatomy.placement), ("norm_kind", kind)):
            if now is not None and getattr(self, name) == now:
                raise LabError(
                    f"Expected another {name} than the model's own, got {now!r}, which it has. Leave it out."
                )
        if self.norm_kind is not None and not kinds and self.norm_placement is None:
            raise LabError("Expected a model with norms for norm_kind, got one without. Pass norm_placement too.")
        attends = [branch for branch in anatomy.branches if branch.attention is not None]
        if (self.qk_norm is not None or self.soft_cap is not None) and not attends:
            raise LabError(
                "Expected a model with attention for qk_norm or soft_cap, got none among its branches: "
                f"{', '.join(sorted({branch.kind for branch in anatomy.branches}))}. Leave these out."
            )
