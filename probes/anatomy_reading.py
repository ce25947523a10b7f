"""Read an anatomy back from JSON: validated, tolerant of fields that were added later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .anatomy import Anatomy, Branch, Outlet, Point, Stack
from .branch_anatomy import AttentionAnatomy, HiddenAnatomy, Projection
from .errors import RecordingError

MOST_TEXT = 10_000  # characters of a name read from a file


def anatomy_from(value: Mapping[str, Any]) -> Anatomy:
    """Return the anatomy that ``Anatomy.to_json`` wrote.

    Raises:
        RecordingError: the value does not have the shape of an anatomy.
    """
    try:
        return Anatomy(
            stacks=tuple(_stack(stack) for stack in value["stacks"]),
            problems=_names(value["problems"]),
            gains=_names(value["gains"]),
            norm_biases=_names(value["norm_biases"]),
            vocabulary=int(value["vocabulary"]),
            notes=_names(value.get("notes", ())),
            ties_embeddings=_flag(value.get("ties_embeddings")),
            positions=_name(value.get("positions", "unknown")),
            is_shift_invariant=_flag(value.get("is_shift_invariant")),
            dropout=tuple(float(item) for item in value.get("dropout", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordingError(
            f"Expected an anatomy as Rheoscope writes it, got one that does not fit ({error!r:.200}). "
            "Record the run again, or read it with the version that wrote it."
        ) from error


def _stack(value: Mapping[str, Any]) -> Stack:
    return Stack(
        index=int(value["index"]),
        branches=tuple(_branch(branch) for branch in value["branches"]),
        start=_point(value["start"]),
        start_parameters=_names(value["start_parameters"]),
        width=int(value["width"]),
        n_streams=int(value.get("n_streams", 1)),
        mixing=_name(value.get("mixing", "")),
        is_causal=_flag(value.get("is_causal")),
        start_is_partial=bool(value.get("start_is_partial", False)),
        start_norms=None if value.get("start_norms") is None else _names(value["start_norms"]),
        outlet=_outlet(value.get("outlet")),
    )


def _branch(value: Mapping[str, Any]) -> Branch:
    error = value["ledger_error"]
    return Branch(
        stack=int(value["stack"]),
        block=int(value["block"]),
        depth=int(value["depth"]),
        kind=_name(value["kind"]),
        placement=_name(value["placement"]),
        norm_kind=_name(value["norm_kind"]),
        module_path=_name(value["module_path"]),
        is_parallel=bool(value["is_parallel"]),
        scale=float(value["scale"]),
        parameters=_names(value["parameters"]),
        input_norms=_names(value["input_norms"]),
        output_norms=_names(value["output_norms"]),
        skip_norms=_names(value["skip_norms"]),
        output_bias=None if value["output_bias"] is None else _name(value["output_bias"]),
        state=_point(value["state"]),
        sum=_point(value["sum"]),
        write=_point(value["write"]),
        output=_point(value["output"]),
        terms=_points(value["terms"]),
        inputs=_points(value["inputs"]),
        ledger_error=None if error is None else float(error),
        # Added later: a recording made before does not hold them.
        seen=_points(value.get("seen", ())),
        factors=tuple(None if item is None else float(item) for item in value.get("factors", ())),
        write_dropout=float(value.get("write_dropout", 0.0)),
        is_gated_skip=bool(value.get("is_gated_skip", False)),
        projections=tuple(
            Projection(_name(item["weight"]), None if item["bias"] is None else _name(item["bias"]))
            for item in value.get("projections", ())
        ),
        attention=_attention(value.get("attention")),
        hidden=_hidden(value.get("hidden")),
        partial=_names(value.get("partial", ())),
        direct_norms=_names(value.get("direct_norms", ())),
    )


def _outlet(value: Mapping[str, Any] | None) -> Outlet | None:
    if value is None:
        return None
    path = value["norm_path"]
    return Outlet(
        norm_path=None if path is None else _name(path),
        norm_kind=_name(value["norm_kind"]),
        norm=_point(value["norm"]),
        is_direct=bool(value["is_direct"]),
        has_logits=bool(value["has_logits"]),
        logits=_point(value["logits"]),
        partial=_names(value["partial"]),
    )


def _attention(value: Mapping[str, Any] | None) -> AttentionAnatomy | None:
    if value is None:
        return None
    cap = value["soft_cap"]
    return AttentionAnatomy(
        n_heads=_count(value["n_heads"]),
        n_key_value_heads=_count(value["n_key_value_heads"]),
        head_size=_count(value["head_size"]),
        qk_norm=_name(value["qk_norm"]),
        soft_cap=None if cap is None else float(cap),
        reason=_name(value["reason"]),
    )


def _hidden(value: Mapping[str, Any] | None) -> HiddenAnatomy | None:
    if value is None:
        return None
    return HiddenAnatomy(
        _count(value["width"]),
        _flag(value["is_gated"]),
        _name(value["activation"]),
        _name(value["reason"]),
        _point(value.get("point")),
    )


def _count(value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError(f"a whole number or nothing, got {value!r:.80}")
    return value


def _flag(value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"true, false or nothing, got {value!r:.80}")
    return value


def _point(value: Mapping[str, Any] | None) -> Point | None:
    if value is None:
        return None
    side: Literal["input", "output"] = "input" if value["side"] == "input" else "output"
    position = tuple(item if isinstance(item, int) else _name(item) for item in value["position"])
    return Point(_name(value["module_path"]), side, position, int(value["call"]))


def _points(values: Any) -> tuple[Point, ...]:
    return tuple(point for value in values if (point := _point(value)) is not None)


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise ValueError(f"a name of at most {MOST_TEXT} characters, got {value!r:.80}")
    return value


def _names(values: Any) -> tuple[str, ...]:
    return tuple(_name(value) for value in values)
