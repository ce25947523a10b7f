"""Say what a stream is: its links, each one add and its branch."""

from __future__ import annotations

from dataclasses import dataclass, field

from .dataflow import Add
from .recorder import Operation


@dataclass
class Link:
    """One add of a stream and its branch.

    Attributes:
        add: the residual add.
        skip_path: (value, kind of the step that made it) from the skip operand back to the previous sum.
        state: the value that the next skip path and branch read.
        terms: what is summed into the branch operand; one unless the block is parallel.
        operands: what is added, one value for each add that was joined into this link.
        cores: per term, the output of its last heavy operation.
        output_kinds: kinds of the transparent steps between the cores and the operand.
        entries: (index of the state that is read, normed or raw, norm output value or None).
        operations: everything computed between the states it reads and the operand, last first.
        foreign: values it reads that vary with the batch but do not come from this stream.
        skip_norms: outputs of the norms between this sum and the state.
        output_norms: outputs of the norms between core and operand.
        stream: bits of the values of the stream that the branch may read.
        read: values of its own stream that the branch reads.
    """

    add: Add
    skip_path: list[tuple[int, str]] = field(default_factory=list)
    state: int = -1
    terms: list[int] = field(default_factory=list)
    operands: list[int] = field(default_factory=list)
    cores: list[int] = field(default_factory=list)
    output_kinds: list[str] = field(default_factory=list)
    entries: list[tuple[int, bool, int | None]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)
    skip_norms: list[int] = field(default_factory=list)
    output_norms: list[int] = field(default_factory=list)
    stream: int = 0
    read: list[int] = field(default_factory=list)

    @property
    def is_parallel(self) -> bool:
        """Whether several terms are added at once."""
        return len(self.terms) > 1

    @property
    def skip_kinds(self) -> set[str]:
        """Kinds of the steps between the previous sum and the skip operand."""
        return {kind for _, kind in self.skip_path}


@dataclass
class Stream:
    """One chain of residual adds; ``start`` is state 0."""

    start: int
    links: list[Link]
