"""Discover a model's anatomy on one batch, and prove it there."""

from __future__ import annotations

from dataclasses import replace

from rheoscope.probes.anatomy import LEDGER_TOLERANCE, Anatomy, Branch, Point, Stack
from rheoscope.probes.batches import Batch
from rheoscope.probes.errors import DiscoveryError
from rheoscope.probes.untouched import untouched
from torch import Tensor, nn

from . import branches
from .certificate import captured, ledger_errors
from .dataflow import Dataflow
from .plan import Plan
from .residual import Link, Stream, streams
from .trace import trace


def discover(model: nn.Module, batch: Batch) -> Anatomy:
    """Find every residual stream of ``model``, its branches and norms, and certify each add with plain hooks.

    Two forwards without gradients in eval mode: one traced, one with hooks only. The model's buffers, training
    flags, random state and gradients are left as they were.

    Args:
        model: any PyTorch module.
        batch: what its training loop passes: a tensor, a tuple of arguments, or a mapping of keywords.

    Raises:
        BatchError: the model rejects the batch.
        DiscoveryError: its dataflow holds no residual stream, or its parameters are on the meta device.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise DiscoveryError(
            "Expected parameters that hold values, got parameters on the meta device. Materialise the model first."
        )
    with untouched(model, training=False):
        flow = Dataflow(trace(model, batch))
        found = streams(flow)
        if not found:
            raise DiscoveryError(
                f"Expected a model whose blocks add what they compute to a running sum, got {type(model).__name__}, in "
                f"whose {len(flow.operations)} traced operations no such sum recurs. Pass the transformer itself, with "
                "a batch that runs all of it."
            )
        trainable = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        anatomy = _anatomy(flow, found, trainable)
        seen = captured(model, batch, _points(anatomy))
    return _certified(anatomy, seen)


def _anatomy(flow: Dataflow, found: list[Stream], trainable: set[str]) -> Anatomy:
    plan = Plan(flow)
    stacks = tuple(_stack(flow, plan, stream, index, trainable) for index, stream in enumerate(found))
    stacks = _exclusive(stacks)
    gains = tuple(f"{path}.{name}" for path, norm in flow.norms.items() for name in norm.gains)
    biases = tuple(f"{path}.{name}" for path, norm in flow.norms.items() for name in norm.biases)
    widest = max((shape[-1] for shape in _output_shapes(flow)), default=0)
    vocabulary = widest if widest > max(stack.width for stack in stacks) else 0
    return Anatomy(stacks, (), gains, biases, vocabulary)


def _output_shapes(flow: Dataflow) -> list[tuple[int, ...]]:
    trace_ = flow.trace
    outputs = [value for _, value in trace_.calls[0].outputs] if trace_.calls else []
    return [trace_.shapes[v] for v in outputs if trace_.shapes[v] and trace_.dtypes[v].is_floating_point]


def _stack(flow: Dataflow, plan: Plan, stream: Stream, index: int, trainable: set[str]) -> Stack:
    width = flow.trace.shapes[stream.start][-1]
    numbers = branches.block_numbers([branches.kind(flow, link) for link in stream.links])
    made = tuple(
        _branch(flow, plan, link, index, block, depth)
        for depth, (link, block) in enumerate(zip(stream.links, numbers, strict=True), start=1)
    )
    names = flow.trace.parameters
    start_parameters = tuple(
        name for value, name in names.items() if name in trainable and flow.reaches(value, stream.start)
    )
    return Stack(index, made, plan.of_state(stream.start), start_parameters, width)


def _branch(flow: Dataflow, plan: Plan, link: Link, stack: int, block: int, depth: int) -> Branch:
    inputs, outputs, skips = branches.norm_values(link)
    placement = branches.placement(link)
    width = flow.trace.shapes[link.add.result][-1]
    has_sum = link.state != link.add.result
    input_points = [plan.of_output(value) for value in inputs]
    own = [norm for norm in (inputs, outputs, skips) if norm]
    return Branch(
        stack=stack,
        block=block,
        depth=depth,
        kind=branches.kind(flow, link),
        placement=placement,
        norm_kind=branches.norm_kind(flow, [value for norm in own for value in norm]),
        is_parallel=link.is_parallel,
        scale=float("nan") if link.scaled_skip else 1.0,
        module_path=plan.holder(link.cores),
        parameters=branches.parameters(flow, link),
        output_bias=branches.output_bias(flow, link, width),
        input_norms=tuple(flow.norm_of[value] for value in inputs if value in flow.norm_of),
        output_norms=tuple(flow.norm_of[value] for value in outputs if value in flow.norm_of),
        skip_norms=tuple(flow.norm_of[value] for value in skips if value in flow.norm_of),
        state=plan.of_state(link.state),
        sum=plan.of_state(link.add.result) if has_sum else None,
        write=None if link.is_parallel else plan.of_branch(link.add.branch),
        output=None if link.is_parallel else plan.of_output(link.cores[0]),
        terms=_terms(plan, link),
        inputs=tuple(dict.fromkeys(point for point in input_points if point is not None)),
    )


def _terms(plan: Plan, link: Link) -> tuple[Point, ...]:
    if not link.is_parallel:
        return ()
    points = [plan.of_branch(value) for value in link.terms]
    return tuple(point for point in points if point is not None) if None not in points else ()


def _exclusive(stacks: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """Leave to each branch the parameters that no other branch uses."""
    users: dict[str, int] = {}
    for stack in stacks:
        for branch in stack.branches:
            for name in branch.parameters:
                users[name] = users.get(name, 0) + 1
    return tuple(
        replace(
            stack,
            branches=tuple(
                replace(branch, parameters=tuple(name for name in branch.parameters if users[name] == 1))
                for branch in stack.branches
            ),
        )
        for stack in stacks
    )


def _points(anatomy: Anatomy) -> set[Point]:
    found: set[Point | None] = {stack.start for stack in anatomy.stacks}
    for branch in anatomy.branches:
        found |= {branch.state, branch.sum, branch.write, *branch.terms}
    return {point for point in found if point is not None}


def _certified(anatomy: Anatomy, seen: dict[Point, Tensor]) -> Anatomy:
    stacks, problems = [], list(anatomy.problems)
    for stack in anatomy.stacks:
        checked = []
        for branch, (error, scale) in zip(stack.branches, ledger_errors(stack, seen), strict=True):
            checked.append(replace(branch, ledger_error=error, scale=scale))
            problem = _problem(branch, error)
            if problem:
                problems.append(problem)
        stacks.append(replace(stack, branches=tuple(checked)))
    return replace(anatomy, stacks=tuple(stacks), problems=tuple(problems))


def _problem(branch: Branch, error: float | None) -> str | None:
    where = f"the {branch.kind} branch of block {branch.block} (stack {branch.stack})"
    if error is not None and error > LEDGER_TOLERANCE:
        return f"The sum behind {where} is not skip operand plus write: relative error {error:.2g}."
    if error is None:
        hidden = [
            name
            for name, point in (("state", branch.state), ("write", branch.write or (branch.terms or None)))
            if point is None
        ]
        why = (
            f"no module shows its {' and '.join(hidden)}" if hidden else "its terms differ in layout or are not finite"
        )
        return f"The add of {where} is not certified: {why}."
    if branch.placement == "unknown":
        return f"The norm placement of {where} is not settled by its dataflow."
    return None
