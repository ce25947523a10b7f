"""Every file of the rooms reaches the installed package, and setup.cfg lists what is there."""

from __future__ import annotations

from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import rheoscope

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "facade": "rheoscope",
    "probes": "rheoscope.probes",
    "diagnostics": "rheoscope.diagnostics",
    "reports": "rheoscope.reports",
    "lab": "rheoscope.lab",
}
SOURCES_ONLY = {".c", ".h", ".pyc", ".so"}  # compiled, or made when the package is


def setup() -> ConfigParser:
    """Return setup.cfg."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def files(folder: str) -> list[Path]:
    """Return the files of a room, relative to it."""
    found = (path.relative_to(ROOT / folder) for path in sorted((ROOT / folder).rglob("*")) if path.is_file())
    return [path for path in found if "__pycache__" not in path.parts and path.suffix not in SOURCES_ONLY]


def is_importable(name: str) -> bool:
    """Return whether ``name`` can be found without running it."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_the_rooms_are_mapped_onto_one_package() -> None:
    lines = setup()["options"]["package_dir"].split("\n")
    mapped = {folder.strip(): package.strip() for package, _, folder in (line.partition("=") for line in lines if line)}

    assert mapped == PACKAGES


def test_every_package_of_the_tree_is_listed_and_no_other() -> None:
    in_tree = {
        ".".join((package, *path.parent.parts))
        for folder, package in PACKAGES.items()
        for path in files(folder)
        if path.suffix == ".py"
    }
    listed = setup()["options"]["packages"].split()

    assert sorted(listed) == sorted(in_tree)


def test_every_package_has_a_front() -> None:
    bare = {
        f"{folder}/{path.parent}"
        for folder in PACKAGES
        for path in files(folder)
        if path.suffix == ".py" and not (ROOT / folder / path.parent / "__init__.py").is_file()
    }

    assert bare == set()


def test_every_module_is_importable_where_it_is_installed() -> None:
    names = [
        ".".join((package, *path.with_suffix("").parts)).removesuffix(".__init__")
        for folder, package in PACKAGES.items()
        for path in files(folder)
        if path.suffix == ".py"
    ]
    missing = [name for name in names if not is_importable(name)]

    assert missing == [], "list them under [options] packages and run make install"


def test_every_other_file_is_installed_beside_its_module() -> None:
    home = Path(rheoscope.__file__).parent
    missing = [
        f"{folder}/{path}"
        for folder, package in PACKAGES.items()
        for path in files(folder)
        if not home.joinpath(*package.split(".")[1:], path).is_file()
    ]

    assert missing == [], "name them under [options.package_data] and run make install"


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(rheoscope.__file__).parent / "py.typed").is_file()
