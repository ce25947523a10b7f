"""Build the one C extension where there is a compiler; without one the package works with torch's own operations."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class OptionalBuild(build_ext):
    """A build that leaves out what no compiler could make, also in a strict editable install."""

    def get_output_mapping(self) -> dict[str, str]:
        """Return the files that were really built."""
        return {output: source for output, source in super().get_output_mapping().items() if Path(source).exists()}


# Python is built with -fwrapv, under which no compiler takes `x[i + l]` for consecutive elements.
FLAGS = [] if sys.platform == "win32" else ["-O3", "-fno-wrapv", "-fno-math-errno"]
moments = Extension(
    "rheoscope.probes.kernels._moments",
    [f"probes/kernels/{name}.c" for name in ("_moments", "reduce", "rows", "threads", "tokens", "weights")],
    depends=["probes/kernels/moments.h"],
    extra_compile_args=FLAGS,
    optional=True,
    py_limited_api=True,
)
setup(
    ext_modules=[moments], cmdclass={"build_ext": OptionalBuild}, options={"bdist_wheel": {"py_limited_api": "cp311"}}
)
