"""Say what an attention branch is made of: heads, shared key-value heads, normed queries and keys, capped logits."""

from __future__ import annotations

from rheoscope.probes.branch_anatomy import AttentionAnatomy

from .branches import attention, norm_kind, queries_and_keys
from .dataflow import Dataflow
from .links import Link
from .recorder import Operation
from .vocabulary import ADDS, PRODUCTS, is_heavy

_REPEATING = frozenset("expand repeat repeat_interleave expand_as tile".split())
_FUSED = "multi_head_attention_forward"


def heads(flow: Dataflow, link: Link) -> AttentionAnatomy | None:
    """Return what the call that multiplies queries with keys tells; None where the branch does not attend."""
    attends = attention(flow, link.operations)
    if attends is None:
        return None
    cap = soft_cap(link, attends)
    if attends.name == _FUSED:
        return _fused(attends)
    operands = _operands(attends)
    if operands is None:
        return AttentionAnatomy(soft_cap=cap, reason=f"Queries and keys meet in {attends.name}, which hides the heads.")
    query, key, query_shape, key_shape = operands
    key_path, query_path = images(flow, key), images(flow, query)
    kinds = {value for value, kind in (*key_path, *query_path) if kind == "norm"}
    n_heads, per_head = _counts(flow, query_shape)
    is_grouped = n_heads is not None and len(key_shape) == 4 and key_shape[1] < n_heads
    return AttentionAnatomy(
        n_heads=n_heads,
        n_key_value_heads=key_shape[1] if is_grouped else _key_heads(flow, key_path, n_heads),
        head_size=per_head,
        qk_norm=norm_kind(flow, sorted(kinds)),
        soft_cap=cap,
        reason="" if n_heads is not None else "Queries carry no axis of heads.",
    )


def _fused(attends: Operation) -> AttentionAnatomy:
    whole = [int(number) for number in attends.numbers if number == int(number) and number > 0]
    if len(whole) < 2:
        return AttentionAnatomy(reason="torch's fused attention was called without a number of heads.")
    width, count = whole[:2]
    return AttentionAnatomy(count, count, width // count, "none", None)


def _operands(attends: Operation) -> tuple[int, int, tuple[int, ...], tuple[int, ...]] | None:
    """Return queries and keys, each with its shape as (..., positions, head size)."""
    given = queries_and_keys(attends)
    if len(given) < 2 or attends.name == "einsum" or any(value not in attends.forms for value in given):
        return None
    shapes = [attends.forms[value].shape for value in given]
    if "scaled_dot_product" not in attends.name and "flex_attention" not in attends.name:
        shapes[1] = (*shapes[1][:-2], shapes[1][-1], shapes[1][-2]) if len(shapes[1]) >= 2 else shapes[1]
    return given[0], given[1], shapes[0], shapes[1]


def _counts(flow: Dataflow, shape: tuple[int, ...]) -> tuple[int | None, int | None]:
    if len(shape) == 4:
        return shape[1], shape[-1]
    rows = next((flow.trace.shapes[v][0] for _, v in flow.trace.calls[0].inputs if flow.trace.shapes[v]), 0)
    if len(shape) == 3 and rows and shape[0] % rows == 0:
        return shape[0] // rows, shape[-1]
    return None, shape[-1] if shape else None


def _key_heads(flow: Dataflow, path: list[tuple[int, str]], n_heads: int | None) -> int | None:
    """Return how many heads of keys there are before they are repeated for the queries' heads."""
    if n_heads is None:
        return None
    for value, _ in path:
        made = flow.producer[value]
        if made.name in _REPEATING and made.inputs:
            times = flow.trace.n_elements(value) // max(1, flow.trace.n_elements(made.inputs[0]))
            if times > 1 and n_heads % times == 0:
                return n_heads // times
    return n_heads


def images(flow: Dataflow, value: int) -> list[tuple[int, str]]:
    """Return (value, kind of the step that made it) of all that ``value`` is an image of, up to its projection.

    The first of each pair is what was made by the step; rotations are sums of two images, both followed.
    """
    waiting, seen, found = [value], {value}, list[tuple[int, str]]()
    while waiting and len(seen) < 60:
        current = waiting.pop()
        made = flow.producer.get(current)
        if made is None or is_heavy(made.name):
            continue
        for parent, kind in flow.light_parents.get(current, []):
            found.append((current, kind))
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return found


def is_rotated(flow: Dataflow, link: Link) -> bool:
    """Return whether queries are a sum of two images of themselves, or a complex product: rotary positions."""
    attends = attention(flow, link.operations)
    operands = _operands(attends) if attends is not None and attends.name != _FUSED else None
    if operands is None:
        return False
    waiting, seen = [operands[0]], {operands[0]}
    while waiting and len(seen) < 60:
        value = waiting.pop()
        made = flow.producer.get(value)
        if made is None or is_heavy(made.name):
            continue
        moving = [v for v in dict.fromkeys(made.inputs) if not flow.is_constant(v)]
        if made.name in ("view_as_real", "view_as_complex") or (made.name in ADDS and len(moving) == 2):
            return True
        waiting += [v for v in moving if v not in seen]
        seen.update(moving)
    return False


def soft_cap(link: Link, attends: Operation) -> float | None:
    """Return the bound that a tanh puts on the logits: the number that its result is multiplied by."""
    between = [made for made in link.operations if made.outputs[0] > attends.outputs[0]]
    for made in between:
        if made.name != "tanh":
            continue
        for reader in between:
            if made.outputs[0] in reader.inputs and reader.name in PRODUCTS and reader.numbers:
                return abs(reader.numbers[0])
    return None
