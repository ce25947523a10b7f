"""Look at what is installed here, and at what it means for speed: versions, the kernels, threads, plugins. Nothing is changed."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version

import torch

from .kernels import N_SUMS, by_c, by_torch

OK, ABSENT, SLOW = "ok", "absent", "slow"
N_VALUES = 2**20  # 4 MB: more than a core's caches, as activations are
REPEATS = 9
NEEDED = ("torch", "numpy", "pandas", "pyarrow", "plotly", "jinja2", "rich", "typer", "captum", "safetensors")
# Library, the extra that brings it, and what it is for.
OPTIONAL = (
    ("transformers", "hf", "models of Hugging Face"),
    ("lightning", "lightning", "its Trainer"),
    ("accelerate", "accelerate", "its loops"),
    ("tensorboard", "tensorboard", "its event files"),
    ("wandb", "wandb", "Weights & Biases"),
    ("mlflow", "mlflow", "MLflow"),
    ("distributed", "dask", "sweeps of the lab on a cluster"),
)
PLUGIN_GROUP = "rheoscope."

Row = dict[str, str]  # part, state (ok, absent or slow), found, advice


def installation() -> list[Row]:
    """Return one row a part: what it is, its state, what was found, and what to do about it, "" for nothing."""
    return [*_versions(), *_machine(), _c_kernel(), _triton(), *_plugins()]


def kernel_times() -> tuple[float | None, float]:
    """Return the median seconds in which the C kernel and torch's operations reduce 4 MB on one thread; None without a kernel."""
    tensor = torch.randn(1024, N_VALUES // 1024, generator=torch.Generator().manual_seed(0))
    sums = torch.zeros(N_SUMS, dtype=torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fused = None
        if by_c.kernel is not None:
            fused = _median(lambda: by_c.moments(tensor, sums.data_ptr(), 0, 1))
        return fused, _median(lambda: by_torch.moments(tensor))
    finally:
        torch.set_num_threads(threads)


def _median(action: Callable[[], object]) -> float:
    action()
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _versions() -> Iterator[Row]:
    yield _row("rheoscope", OK, _version("rheoscope") or "not installed as a package")
    yield _row("python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in NEEDED:
        found = _version(name)
        yield _row(name, OK if found else ABSENT, found or "not installed", "" if found else f"pip install {name}")
    for name, extra, purpose in OPTIONAL:
        found = _version(name)
        advice = "" if found else f"pip install 'rheoscope[{extra}]', if it is wanted for {purpose}"
        yield _row(name, OK if found else ABSENT, found or "not installed; optional", advice)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> Iterator[Row]:
    devices = [f"{torch.cuda.device_count()} CUDA"] if torch.cuda.is_available() else []
    devices += ["MPS"] if torch.backends.mps.is_available() else []
    yield _row("devices", OK, ", ".join(devices) or "CPU alone")
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    yield _row(
        "threads",
        SLOW if threads > cores else OK,
        f"torch uses {threads} of {cores} cores",
        f"more threads than cores wait for each other: OMP_NUM_THREADS={cores}" if threads > cores else "",
    )
    if torch.is_anomaly_enabled():
        yield _row("anomaly mode", SLOW, "on: torch checks every gradient", "torch.autograd.set_detect_anomaly(False)")


def _c_kernel() -> Row:
    fused, plain = kernel_times()
    if fused is None:
        return _row(
            "C kernel",
            SLOW,
            f"not built: torch's operations serve, {plain * 1e3:.3g} ms for 4 MB; results are the same",
            "with a C compiler: pip install --force-reinstall --no-deps --no-binary rheoscope rheoscope",
        )
    return _row(
        "C kernel",
        OK,
        f"{fused * 1e3:.3g} ms for 4 MB on one thread; torch's operations take {plain / fused:.0f} times as long",
    )


def _triton() -> Row:
    if not torch.cuda.is_available():
        return _row("Triton", OK, "not needed: no CUDA device here")
    found = _version("triton")
    if found is None:
        return _row("Triton", SLOW, "not installed: torch's operations serve on CUDA", "pip install triton")
    return _row("Triton", OK, f"{found}: one fused kernel on CUDA")


def _plugins() -> Iterator[Row]:
    """Yield entry points of other packages, by name: to load one would run its code."""
    known = entry_points()
    groups = sorted(group for group in known.groups if group.startswith(PLUGIN_GROUP))
    found = [point for group in groups for point in known.select(group=group)]
    if not found:
        yield _row("plugins", OK, "none")
    for point in found:
        package = point.dist.name if point.dist is not None else "unknown package"
        yield _row(f"plugin {point.name}", OK, f"{point.group} of {package}: {point.value} (not loaded here)")


def _row(part: str, state: str, found: str, advice: str = "") -> Row:
    return {"part": part, "state": state, "found": found, "advice": advice}
