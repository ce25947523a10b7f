"""Describe what discovery found: stacks, blocks, branches, and where a hook sees each tensor.

Axes and words: a model has *stacks*; a stack has *states* 0..K and *branches* 1..K; branch k adds its write to
state k-1: ``sum k = scale * state k-1 + write k``; state k is ``norm(sum k)`` under post-norm and the sum itself
otherwise. ``depth`` is k. A *block* groups consecutive branches, numbered from 0; state 0 belongs to block -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from .branch_anatomy import AttentionAnatomy, HiddenAnatomy, Projection
from .outlet import Outlet
from .point import Point

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LEDGER_TOLERANCE", "Anatomy", "Branch", "Outlet", "Point", "Stack", "shared"]

LEDGER_TOLERANCE = 1e-5  # float32 sums of two terms close to about 1e-7; 1e-5 leaves room for fused kernels.


@dataclass(frozen=True)
class Branch:
    """One addend of the residual stream.

    Attributes:
        stack: index of the stack.
        block: index of the block within the stack, from 0.
        depth: k, the position of this branch's add in the stack, from 1.
        kind: attention, cross_attention, mlp, moe, mixer or parallel (attention and MLP in one add).
        placement: pre, post, double, reordered, none or unknown.
        norm_kind: layernorm, rmsnorm, mixed or none: of all norms of this branch.
        is_parallel: whether several branches read the same state.
        scale: factor of the skip operand in the sum (DeepNorm's alpha; 1 otherwise).
        module_path: the deepest module that holds the whole branch, "" when it stands in the model's own forward.
        parameters: names of the parameters that only this branch uses.
        output_bias: name of the bias that is added last, None where the last projection has none.
        input_norms: paths of the norms between the state and the branch's projections.
        output_norms: paths of the norms between the branch's last projection and the add.
        skip_norms: paths of the norms between the sum and the next state.
        state: where state k is seen; None where no hook sees it.
        sum: where sum k is seen, where it differs from state k.
        write: where the branch's write is seen, as it is added.
        output: where the branch's last projection is seen, before norms and scales.
        terms: where the addends of a parallel block's write are seen.
        inputs: where the normed inputs of the branch are seen.
        ledger_error: relative error of ``sum = scale * skip + write``, None where it could not be checked.
        seen: where the tensors are seen that the write is made of, where no hook sees it as it is added: before a
            constant factor, before a dropout that only training applies, or as terms of a sum.
        factors: the constant factor of each of ``seen``; None where it differs between elements.
        write_dropout: probability of the dropout between ``seen`` and the add, 0 without one.
        is_gated_skip: whether the skip operand is multiplied by something that depends on the batch (GRU gates,
            interpolation): ``scale`` is then not one number.
        projections: the matrices of the branch, in order of their use.
        attention: heads and logits of an attention branch.
        hidden: width, gate and activation of a feed-forward branch.
        partial: which of state, sum, write, branch_input and hidden are seen as a copy or another view alone: its values are
            those of the tensor, its gradient is a part of the tensor's.
        direct_norms: which norms (input, output, stream) stand right between two tensors that are recorded, state k-1 and
            branch input, branch output and write, sum and state, with nothing else in between.
    """

    stack: int
    block: int
    depth: int
    kind: str
    placement: str
    norm_kind: str
    is_parallel: bool = False
    scale: float = 1.0
    module_path: str = ""
    parameters: tuple[str, ...] = ()
    output_bias: str | None = None
    input_norms: tuple[str, ...] = ()
    output_norms: tuple[str, ...] = ()
    skip_norms: tuple[str, ...] = ()
    state: Point | None = None
    sum: Point | None = None
    write: Point | None = None
    output: Point | None = None
    terms: tuple[Point, ...] = ()
    inputs: tuple[Point, ...] = ()
    ledger_error: float | None = None
    seen: tuple[Point, ...] = ()
    factors: tuple[float | None, ...] = ()
    write_dropout: float = 0.0
    is_gated_skip: bool = False
    projections: tuple[Projection, ...] = ()
    attention: AttentionAnatomy | None = None
    hidden: HiddenAnatomy | None = None
    partial: tuple[str, ...] = ()
    direct_norms: tuple[str, ...] = ()

    def whole(self, name: str) -> Point | None:
        """Return where ``state``, ``sum`` or ``write`` shows its whole gradient; None where no hook sees that."""
        point: Point | None = getattr(self, name)
        return None if name in self.partial else point

    @property
    def added(self) -> Point | None:
        """Where sum k shows its whole gradient: at the state where the two are one."""
        return self.whole("sum" if self.sum is not None else "state")


@dataclass(frozen=True)
class Stack:
    """One chain of residual adds.

    Attributes:
        index: position of the stack in order of execution.
        branches: in order of their adds.
        start: where state 0 is seen.
        start_parameters: parameters that state 0 is made from and no branch uses (the embeddings).
        width: size of the stream's last axis.
        n_streams: how many parallel streams the stack carries (hyper-connections); 1 for all others.
        mixing: how parallel streams are mixed, in words; "" for a single stream.
        start_is_partial: whether ``start`` shows a copy or another view alone: its gradient is a part of state 0's.
        is_causal: whether a position never depends on later ones, found by changing later tokens; None where the
            batch has no tokens to change or the test does not settle it.
        start_norms: paths of the norms that state 0 comes out of, "" where one is no module of its own: the embedding may end in
            one. None in an anatomy made before these were looked for.
        outlet: the final norm and the logits behind the last state; None in an anatomy made before these were looked for.
    """

    index: int
    branches: tuple[Branch, ...]
    start: Point | None = None
    start_parameters: tuple[str, ...] = ()
    width: int = 0
    n_streams: int = 1
    mixing: str = ""
    is_causal: bool | None = None
    start_is_partial: bool = False
    start_norms: tuple[str, ...] | None = None
    outlet: Outlet | None = None

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return 1 + max((branch.block for branch in self.branches), default=-1)

    @property
    def ordinary(self) -> tuple[Branch, ...]:
        """The branches of blocks with as many as most: others are no siblings of theirs. All, where most differ."""
        counts = [sum(branch.block == block for branch in self.branches) for block in range(self.n_blocks)]
        usual = max(set(counts), key=counts.count, default=0)
        alike = {block for block, count in enumerate(counts) if count == usual}
        return tuple(b for b in self.branches if b.block in alike) if 2 * len(alike) > len(counts) else self.branches

    @property
    def placement(self) -> str:
        """The placement that all branches share, or ``mixed``."""
        return shared((branch.placement for branch in self.branches), "unknown")


@dataclass(frozen=True)
class Anatomy:
    """What discovery found on one model.

    Attributes:
        stacks: in order of execution.
        problems: why the anatomy is incomplete, in sentences.
        gains: names of the norms' gain parameters.
        norm_biases: names of the norms' bias parameters.
        vocabulary: size of the model's largest output axis, 0 when it is not larger than the stream's width.
        notes: what is certain but worth knowing, in sentences; they do not put the anatomy in doubt.
        ties_embeddings: whether the output projection is the token embedding; None without either.
        positions: how positions enter: learned, sinusoidal, rotary, alibi, relative, none or unknown.
        is_shift_invariant: whether attention really depends on relative position alone (shift test); None where it
            could not be tested.
        dropout: the dropout probabilities in the model's forward, in ascending order, without repetition.
    """

    stacks: tuple[Stack, ...] = ()
    problems: tuple[str, ...] = ()
    gains: tuple[str, ...] = ()
    norm_biases: tuple[str, ...] = ()
    vocabulary: int = 0
    notes: tuple[str, ...] = ()
    ties_embeddings: bool | None = None
    positions: str = "unknown"
    is_shift_invariant: bool | None = None
    dropout: tuple[float, ...] = ()

    @property
    def branches(self) -> tuple[Branch, ...]:
        """All branches, stack after stack."""
        return tuple(branch for stack in self.stacks for branch in stack.branches)

    def before(self, index: int) -> Point | None:
        """Return where the state before branch ``index`` shows its whole gradient; None where no hook sees that."""
        branch = self.branches[index]
        if branch.depth == 1:
            stack = self.stacks[branch.stack]
            return None if stack.start_is_partial else stack.start
        return self.branches[index - 1].whole("state")

    @property
    def blocks(self) -> tuple[tuple[Branch, ...], ...]:
        """All blocks, each as the tuple of its branches."""
        found: dict[tuple[int, int], list[Branch]] = {}
        for branch in self.branches:
            found.setdefault((branch.stack, branch.block), []).append(branch)
        return tuple(tuple(branches) for branches in found.values())

    @property
    def n_blocks(self) -> int:
        """Number of blocks in all stacks."""
        return len(self.blocks)

    @property
    def n_branches(self) -> int:
        """Number of branches in all stacks."""
        return len(self.branches)

    @property
    def placement(self) -> str:
        """The placement that all branches share, or ``mixed``."""
        return shared((branch.placement for branch in self.branches), "unknown")

    @property
    def norm_kind(self) -> str:
        """The norm kind that all branches share, or ``mixed``."""
        return shared((branch.norm_kind for branch in self.branches), "none")

    @property
    def is_parallel(self) -> bool:
        """Whether any block is parallel."""
        return any(branch.is_parallel for branch in self.branches)

    @property
    def has_biases(self) -> bool:
        """Whether any branch ends in a bias."""
        return any(branch.output_bias is not None for branch in self.branches)

    @property
    def ledger_error(self) -> float | None:
        """Largest relative error of ``sum = scale * skip + write`` over all certified adds; None without one."""
        errors = [branch.ledger_error for branch in self.branches if branch.ledger_error is not None]
        return max(errors) if errors else None

    @property
    def is_complete(self) -> bool:
        """Whether every add of every stack is certified and nothing is in doubt."""
        certified = [b.ledger_error is not None and b.ledger_error <= LEDGER_TOLERANCE for b in self.branches]
        return bool(certified) and all(certified) and not self.problems

    def to_frame(self) -> pd.DataFrame:
        """Return one row a branch, without the hook points."""
        import pandas as pd

        hidden = {"state", "sum", "write", "output", "terms", "inputs", "parameters", "seen", "factors"}
        hidden |= {"projections", "attention", "hidden", "direct_norms"}
        names = [field.name for field in fields(Branch) if field.name not in hidden]
        rows = [{name: getattr(branch, name) for name in names} | _details(branch) for branch in self.branches]
        return pd.DataFrame(rows, columns=[*names, *_DETAILS])

    def to_json(self) -> dict[str, Any]:
        """Return plain values that ``json`` can write and ``from_json`` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Anatomy:
        """Read what ``to_json`` wrote.

        Raises:
            RecordingError: the value does not have the shape of an anatomy.
        """
        from .anatomy_reading import anatomy_from

        return anatomy_from(value)


_DETAILS = ("n_heads", "n_key_value_heads", "head_size", "qk_norm", "soft_cap", "d_ff", "is_gated", "activation")


def _details(branch: Branch) -> dict[str, Any]:
    attention, hidden = branch.attention, branch.hidden
    found: dict[str, Any] = dict.fromkeys(_DETAILS)
    if attention is not None:
        found |= {name: getattr(attention, name) for name in _DETAILS[:5]}
    if hidden is not None:
        found |= {"d_ff": hidden.width, "is_gated": hidden.is_gated, "activation": hidden.activation}
    return found


def shared(values: Any, empty: str) -> str:
    """Return the one value that all share, ``mixed`` if they differ, ``empty`` if there is none."""
    found = list(dict.fromkeys(values))
    return empty if not found else found[0] if len(found) == 1 else "mixed"
