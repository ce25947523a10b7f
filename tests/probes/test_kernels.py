"""The C kernel, torch's operations and Triton's kernel all give what numpy gives in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from kernel_cases import STATISTICS, cases, differences, oracle
from rheoscope.probes.attention_statistics import bound, bound_by_kernel
from rheoscope.probes.kernels import N_SUMS, WANTS_CHANNELS, WANTS_ROW_MEANS, by_c, by_torch
from rheoscope.probes.schema import STATISTICS as COLUMNS
from rheoscope.probes.statistics import power_sums, statistics
from torch import Tensor

ALL = WANTS_CHANNELS | WANTS_ROW_MEANS
needs_c = pytest.mark.skipif(by_c.kernel is None, reason="the package was built without a compiler")
TESTS = str(Path(__file__).parents[1])


def named(sums: Tensor) -> dict[str, float]:
    """Return the statistics of one row of sums."""
    return {name: float(values[0]) for name, values in statistics(sums[None].double().cpu()).items()}


def c_sums(tensor: Tensor, n_threads: int = 1) -> Tensor:
    """Return the sums from the C kernel and nothing else."""
    row = torch.full((N_SUMS,), torch.nan, dtype=torch.float64)
    assert by_c.moments(tensor.contiguous(), row.data_ptr(), ALL, n_threads)
    return row


IMPLEMENTATIONS = {
    "the sheet": lambda tensor: power_sums(tensor, ALL),
    "torch": lambda tensor: by_torch.moments(tensor, ALL),
    "C, 1 thread": c_sums,
    "C, 2 threads": lambda tensor: c_sums(tensor, 2),
    "C, 4 threads": lambda tensor: c_sums(tensor, 4),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_statistics_are_numpys_in_float64(implementation: str) -> None:
    if implementation.startswith("C") and by_c.kernel is None:
        pytest.skip("the package was built without a compiler")

    wrong = {}
    for name, tensor in cases():
        found = differences(named(IMPLEMENTATIONS[implementation](tensor)), tensor)
        if found:
            wrong[name] = found

    assert COLUMNS == STATISTICS
    assert wrong == {}


TRITON = """
import sys
sys.path.insert(0, {tests!r})
import torch
from kernel_cases import cases, differences
from rheoscope.probes.kernels import by_triton
from rheoscope.probes.statistics import statistics

n = 0
for name, tensor in cases():
    if tensor.numel() > 20_000:
        continue
    row = torch.zeros(10, dtype=torch.float64)
    by_triton.moments(tensor, row, {flags})
    found = {{key: float(value[0]) for key, value in statistics(row[None]).items()}}
    n += 1
    for text in differences(found, tensor):
        print(name, text)
print(n, "cases")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_tritons_kernel_in_its_interpreter_gives_what_numpy_gives() -> None:
    code = TRITON.format(tests=TESTS, flags=ALL)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}

    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    n = sum(tensor.numel() <= 20_000 for _, tensor in cases())
    assert run.stdout.strip().splitlines() == [f"{n} cases"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_gives_what_numpy_gives() -> None:
    wrong = {
        name: found for name, tensor in cases() if (found := differences(named(power_sums(tensor.cuda(), ALL)), tensor))
    }

    assert wrong == {}


@pytest.mark.parametrize("reduce", [pytest.param(c_sums, marks=needs_c, id="C"), by_torch.moments])
def test_an_empty_tensor_has_no_statistics(reduce: object) -> None:
    for shape in ((0,), (0, 3), (3, 0)):
        sums = reduce(torch.empty(shape))
        found = named(sums)

        assert sums.tolist() == [0.0] * N_SUMS
        assert all(math.isnan(value) for name, value in found.items() if name != "nonfinite")


@needs_c
def test_what_is_not_asked_for_is_not_known() -> None:
    found = named(power_sums(torch.randn(6, 8) + 1))

    assert math.isnan(found["mean_share"])
    assert math.isnan(found["channel_absmean"])


@needs_c
def test_a_kernel_that_cannot_read_a_tensor_says_so_and_torch_reads_it() -> None:
    tensor = torch.randn(6, 8)
    small = torch.tensor([0.5, -1.5, 0.0]).to(torch.float8_e4m3fn)
    row = torch.zeros(N_SUMS, dtype=torch.float64)

    assert not by_c.moments(tensor.T, row.data_ptr(), ALL, 1)
    assert not by_c.moments(small, row.data_ptr(), ALL, 1)
    assert not by_c.moments(torch.empty(3, device="meta"), row.data_ptr(), ALL, 1)
    assert not by_c.moments(torch.eye(3).to_sparse(), row.data_ptr(), ALL, 1)
    assert named(power_sums(tensor.T, ALL))["rms"] == pytest.approx(oracle(tensor)["rms"])
    assert named(power_sums(small, ALL))["rms"] == pytest.approx(math.sqrt(2.5 / 3))
    assert named(power_sums(small, ALL))["absmax"] == 1.5


@needs_c
def test_a_subclass_is_not_read_through_its_address() -> None:
    class Elsewhere(Tensor):
        """A tensor whose values could live anywhere."""

    row = torch.zeros(N_SUMS, dtype=torch.float64)

    assert not by_c.moments(torch.randn(6, 8).as_subclass(Elsewhere), row.data_ptr(), ALL, 1)
    assert by_c.moments(torch.nn.Parameter(torch.randn(6, 8)), row.data_ptr(), ALL, 1)


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    tensor = torch.randn(10, 6)
    parts = power_sums(tensor[:4]) + power_sums(tensor[4:])
    whole = power_sums(tensor)

    additive = [0, 1, 2, 3, 4, 6, 7]
    assert parts[additive].tolist() == pytest.approx(whole[additive].tolist(), rel=1e-5, abs=1e-5)


def test_without_the_kernel_a_sheet_is_filled_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(60, 70)
    monkeypatch.setattr(by_c, "kernel", None)

    found = named(power_sums(tensor, ALL))

    assert differences(found, tensor) == []


@needs_c
def test_wrong_arguments_raise_and_do_not_crash() -> None:
    row = torch.zeros(N_SUMS, dtype=torch.float64)

    with pytest.raises(TypeError, match="expected 10 arguments, got 2"):
        by_c.kernel.moments(0, 1)
    with pytest.raises(ValueError, match="expected an address, a known kind"):
        by_c.kernel.moments(row.data_ptr(), 1, 1, 9, row.data_ptr(), 0, 1)
    with pytest.raises(ValueError, match="expected an address"):
        by_c.kernel.moments(0, 1, 1, 0, row.data_ptr(), 0, 1)
    with pytest.raises(TypeError):
        by_c.kernel.squares("a", 1, 1, 0)


@needs_c
def test_two_threads_that_call_at_once_get_their_own_sums() -> None:
    tensors = [torch.randn(700, 513) + shift for shift in range(4)]
    expected = [c_sums(tensor, 1) for tensor in tensors]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(40):
            if not torch.allclose(c_sums(tensors[index], 3), expected[index], rtol=1e-6):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


FORK = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from rheoscope.probes.kernels import by_c

def sums():
    row = torch.zeros(10, dtype=torch.float64)
    by_c.moments(tensor, row.data_ptr(), 3, 4)
    return row

tensor = torch.randn(3000, 512)
before = sums()
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if all(torch.allclose(sums(), before) for _ in range(20)) else 7)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), torch.allclose(sums(), before))
"""


@needs_c
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_the_workers_are_hired_again_in_the_child_of_a_fork() -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORK.format(tests=TESTS)], capture_output=True, text=True, check=False, timeout=120
    )

    assert run.stdout.split() == ["0", "True"], run.stderr


@needs_c
@pytest.mark.parametrize("n_key_heads", [6, 2, 1])
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_the_bound_of_attention_is_that_of_float64(n_key_heads: int, size: float) -> None:
    query = size * torch.randn(3, 7, 6, 10).transpose(1, 2)
    key = torch.randn(2, n_key_heads, 9, 10)
    to = torch.zeros(6, 6, dtype=torch.float64)

    bound_by_kernel(query, key, -0.25, to.data_ptr())

    largest = [t.double().norm(dim=-1).amax((0, 2)) for t in (query, key)]
    expected = 0.25 * largest[0] * largest[1].repeat_interleave(6 // n_key_heads)
    assert to[:, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert to[:, 1:].isnan().all()
    if size == 1.0:
        assert to[:, 0].tolist() == pytest.approx(bound(query, key, -0.25)[:, 0].tolist(), rel=1e-5)


@needs_c
def test_a_bound_of_what_is_not_finite_is_not_finite() -> None:
    query, key = torch.randn(1, 2, 3, 20), torch.randn(1, 2, 3, 20)
    query[0, 1, 1, 5] = math.nan
    to = torch.zeros(2, 6, dtype=torch.float64)

    bound_by_kernel(query, key, 1.0, to.data_ptr())

    assert math.isfinite(to[0, 0])
    assert math.isnan(to[1, 0])
    with pytest.raises(ValueError, match="divide"):
        by_c.kernel.bound(*(0, 1, 3, 0, 1, 1, 1, 1), *(0, 1, 2, 0, 1, 1, 1, 1), 1.0, 0, 6)
