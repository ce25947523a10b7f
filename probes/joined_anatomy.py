"""Make one anatomy of those of a pipeline's stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .anatomy import Anatomy, Stack
from .errors import RecordingError

# What holds a path or a parameter's name, in an anatomy's JSON.
_NAMED = {
    "module_path",
    "parameters",
    "output_bias",
    "input_norms",
    "output_norms",
    "skip_norms",
    "start_parameters",
    "norm_path",
    "weight",
    "bias",
    "gains",
    "norm_biases",
}
Rename = Callable[[str], str]


def renamed(anatomy: Anatomy, rename: Rename) -> Anatomy:
    """Return the anatomy with every path and parameter renamed."""
    return Anatomy.from_json(_renamed(anatomy.to_json(), rename))


def joined_anatomy(anatomies: Sequence[Anatomy], notes: Sequence[str] = ()) -> Anatomy:
    """Return the anatomy of a pipeline whose stages, in order, have these, each in one stack.

    Raises:
        RecordingError: a stage has no stack or several, or their streams have different widths.
    """
    stacks = [_only_stack(index, anatomy) for index, anatomy in enumerate(anatomies)]
    widths = {stack.width for stack in stacks}
    if len(widths) > 1:
        raise RecordingError(
            f"Expected stages of one residual stream, got widths {sorted(widths)}. They are not joined."
        )
    branches = []
    blocks = depths = 0
    for stack in stacks:
        branches += [
            replace(branch, stack=0, block=branch.block + blocks, depth=branch.depth + depths)
            for branch in stack.branches
        ]
        blocks, depths = blocks + stack.n_blocks, depths + len(stack.branches)
    first, last = stacks[0], stacks[-1]
    whole = replace(
        first,
        index=0,
        branches=tuple(branches),
        is_causal=_all_say([stack.is_causal for stack in stacks]),
        outlet=last.outlet,
    )
    positions = [anatomy.positions for anatomy in anatomies]
    told = [position for position in positions if position not in ("none", "unknown")]
    return Anatomy(
        stacks=(whole,),
        problems=of_stages([anatomy.problems for anatomy in anatomies]),
        gains=tuple(name for anatomy in anatomies for name in anatomy.gains),
        norm_biases=tuple(name for anatomy in anatomies for name in anatomy.norm_biases),
        vocabulary=max(anatomy.vocabulary for anatomy in anatomies),
        notes=(*notes, *of_stages([anatomy.notes for anatomy in anatomies])),
        ties_embeddings=None,
        positions=told[0] if told else "unknown" if "unknown" in positions else "none",
        is_shift_invariant=_all_say([anatomy.is_shift_invariant for anatomy in anatomies]),
        dropout=tuple(sorted({rate for anatomy in anatomies for rate in anatomy.dropout})),
    )


def of_stages(sentences: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return what stages say: each sentence once, with the stage that says it, or without where all do."""
    said = dict.fromkeys(sentence for each in sentences for sentence in each)
    found = []
    for sentence in said:
        which = [index for index, each in enumerate(sentences) if sentence in each]
        if len(which) == len(sentences):
            found.append(sentence)
        else:
            found += [f"Stage {index}: {sentence}" for index in which]
    return tuple(found)


def _only_stack(index: int, anatomy: Anatomy) -> Stack:
    if len(anatomy.stacks) != 1:
        raise RecordingError(
            f"Expected a stage with one residual stream, got {len(anatomy.stacks)} in stage {index}. "
            "It is judged by itself: pass its own folder."
        )
    return anatomy.stacks[0]


def _all_say(answers: Sequence[bool | None]) -> bool | None:
    """Return False where a stage says so, True where all do; what a stage cannot tell is not known of the whole."""
    return False if False in answers else True if all(answers) else None


def _renamed(value: Any, rename: Rename) -> Any:
    if isinstance(value, dict):
        return {key: _each(item, rename) if key in _NAMED else _renamed(item, rename) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(item, rename) for item in value]
    return value


def _each(value: Any, rename: Rename) -> Any:
    if isinstance(value, str):
        return rename(value) if value else value
    return [rename(name) for name in value] if isinstance(value, list | tuple) else value
