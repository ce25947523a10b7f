"""Build sdist and wheel into dist/, install the wheel where no compiler is, and run README's example there.

    PYTHONPATH=tests python -m release [--index]

The new environment sees the libraries of this one; with ``--index`` pip fetches all of them instead, as a stranger's would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
ROOMS = {"facade": "", "probes": "probes", "diagnostics": "diagnostics", "reports": "reports", "lab": "lab"}
MODEL = """
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.kernels import by_c

model = ReferenceTransformer(Architecture(n_blocks=4, width=16, n_heads=2, context=12), seed=0)
optimizer = torch.optim.AdamW(model.parameters())
tokens = torch.randint(256, (2, 12))
loader = [{"tokens": tokens, "targets": tokens}] * 3
"""
END = """
print("kernel", by_c.kernel is not None, "steps", len(probe.recording.table("steps")))
"""


def run(*command: object, **options: object) -> str:
    """Return the output of a command that must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def sources() -> Path:
    """Return a copy of what is under version control: a build leaves its traces there."""
    place = Path(tempfile.mkdtemp(prefix="release-"))
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, place / name)
    return place


def built(hook: str, source: Path, target: Path, compiler: str | None = None) -> Path:
    """Return what one hook of the build backend makes of ``source``."""
    target.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; print('made', build_meta.{hook}({str(target)!r}))"
    environment = os.environ | ({"CC": compiler} if compiler else {})
    out = run(sys.executable, "-W", "ignore", "-c", code, cwd=source, env=environment)
    return target / next(line for line in reversed(out.splitlines()) if line.startswith("made ")).removeprefix("made ")


def check_contents(wheel: Path, *, has_kernel: bool) -> None:
    """Fail where a file of the rooms is missing, something else is in it, or the wheel's tag is not that of the stable ABI."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("rheoscope/")}
    wanted = {
        "/".join(filter(None, ("rheoscope", inside, path.relative_to(ROOT / room).as_posix())))
        for room, inside in ROOMS.items()
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in (".c", ".h", ".so", ".pyc")
    }
    kernels = {name for name in names - wanted if name.startswith("rheoscope/probes/kernels/_moments.abi3")}
    assert wanted <= names, sorted(wanted - names)
    assert names - wanted == kernels, sorted(names - wanted)
    assert bool(kernels) == has_kernel, kernels
    assert not has_kernel or "cp311-abi3" in wheel.name, wheel.name


def used(wheel: Path, *, from_index: bool) -> str:
    """Return what README's example says, run from ``wheel`` in a new environment whose PATH holds nothing else."""
    place = Path(tempfile.mkdtemp(prefix="stranger-"))
    run(sys.executable, "-m", "venv", place / "venv")
    python = place / "venv" / "bin" / "python"
    if not from_index:
        site = next((place / "venv").rglob("site-packages"))
        here = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
        (site / "these.pth").write_text("\n".join(dict.fromkeys(here)))
    options = [] if from_index else ["--no-deps", "--no-index", "--ignore-installed"]
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, wheel)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = readme.split("```python\n", 1)[1].split("```", 1)[0]
    (place / "example.py").write_text(
        MODEL + example.replace("import rheoscope as rs", "import rheoscope as rs", 1) + END
    )
    environment = {"PATH": str(python.parent), "HOME": str(place), "OMP_NUM_THREADS": "1"}
    assert shutil.which("cc", path=environment["PATH"]) is None
    where = run(python, "-c", "import rheoscope; print(rheoscope.__file__)", cwd=place, env=environment).strip()
    assert where.startswith(str(place)), where
    said = run(python, "example.py", cwd=place, env=environment)
    assert (place / "report.html").is_file()
    run(python, "-m", "rheoscope", "check", "runs/a", cwd=place, env=environment)
    shutil.rmtree(place)
    return said.strip()


def say(sentence: str) -> None:
    """Print a sentence."""
    sys.stdout.write(f"{sentence}\n")


def main() -> None:
    """Build, check, install and run; print what came of it."""
    from_index = "--index" in sys.argv[1:]
    source = sources()
    shutil.rmtree(DIST, ignore_errors=True)
    sdist = built("build_sdist", source, DIST)
    unpacked = Path(tempfile.mkdtemp(prefix="unpacked-"))
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (inner,) = unpacked.iterdir()
    # From the sdist, so that it is shown to hold all that a build needs.
    wheel = built("build_wheel", inner, DIST)
    has_compiler = shutil.which(os.environ.get("CC", "cc")) is not None
    check_contents(wheel, has_kernel=has_compiler)
    say(f"{sdist.name} {sdist.stat().st_size:,} bytes, {wheel.name} {wheel.stat().st_size:,} bytes")
    say(f"with the kernel, no compiler on PATH: {used(wheel, from_index=from_index)}")
    shutil.rmtree(inner / "build", ignore_errors=True)
    plain = built("build_wheel", inner, unpacked / "plain", compiler="/bin/false")
    check_contents(plain, has_kernel=False)
    say(f"built without a compiler: {used(plain, from_index=from_index)}")
    shutil.rmtree(unpacked)
    shutil.rmtree(source)


if __name__ == "__main__":
    main()
