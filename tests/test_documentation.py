"""The documents say what the code does, and what they show runs."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import rheoscope
import torch
import typer
from oracles import batch_of, gpt2
from rheoscope import watching
from rheoscope.command_line import app
from rheoscope.probes.schema import FORMAT, TABLES
from rheoscope.reports import report as report_module

ROOT = Path(__file__).parents[1]
FORMAT_PAGE = (ROOT / "docs" / "recording_format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", TABLES)
def test_every_column_of_a_table_is_documented_in_its_section(table: str) -> None:
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", FORMAT_PAGE, re.S | re.M))
    section = next(body for heading, body in sections.items() if table in heading.split(", "))

    documented = set(re.findall(r"`(\w+)`", section))

    assert set(TABLES[table]) <= documented


def test_the_format_page_is_of_this_format() -> None:
    assert FORMAT_PAGE.startswith(f"# The recording, format {FORMAT}\n")


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))

    assert links
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


ROBUSTNESS_PAGE = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")


def robustness_tests() -> set[str]:
    """Return the names of all tests of robustness."""
    files = [
        *(ROOT / "tests" / "robustness").rglob("test_*.py"),
        *(ROOT / "tests" / "probes" / "distributed").rglob("test_*.py"),
        ROOT / "tests" / "probes" / "test_parameters.py",
    ]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_way_to_break_a_monitor_names_its_tests_and_they_exist() -> None:
    rows = dict(re.findall(r"^\| (\d+) \|(.*)\|$", ROBUSTNESS_PAGE, re.M))
    named = {int(number): re.findall(r"`(test_\w+)`", row) for number, row in rows.items()}

    assert sorted(named) == list(range(1, 39))
    for number, names in named.items():
        assert names
        assert all(name.startswith(f"test_row_{number:02}_") for name in names)


def test_every_test_that_the_robustness_page_names_exists_and_every_row_is_on_it() -> None:
    there = robustness_tests()
    named = set(re.findall(r"`(test_\w+)`", ROBUSTNESS_PAGE))

    assert named <= there
    assert {name for name in there if name.startswith("test_row_")} <= named


FINDINGS_PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")


def test_every_code_of_a_finding_is_on_the_page_and_every_code_on_the_page_is_one() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "diagnostics").glob("*.py")))
    rows = [row for row in FINDINGS_PAGE.splitlines() if row.startswith("| `")]
    listed = {code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1])}

    written = set(re.findall(r'code="([a-z0-9-]+)"', source)) | set(re.findall(r'Quantity\(\s*"([a-z0-9-]+)"', source))
    # A size's code is made of the role of the parameter, a closed form's of what it is compared with.
    made = {f"{role}-scale" for role in ("weight", "gain", "bias", "norm-bias")}
    made |= {"state-unlike-theory", "gradient-unlike-theory"}

    assert written - listed == set()
    assert {code for code in listed - made if f'"{code}"' not in source} == set()


PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
SNIPPET = re.compile(r'--8<-- "([^"]+)"')
LATER = {"run"}  # commands and names that another installation may lack


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def surroundings() -> dict[str, Any]:
    """Return what the blocks of a page find: a small model, its optimizer, batches."""
    model = gpt2()
    batch = batch_of(model)
    return {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "batch": batch,
        "tokens": batch["input_ids"],
        "loader": [batch] * 4,
        "dataset": [{name: rows[0] for name, rows in batch.items()}] * 8,
    }


WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.name != "README.md"]
NEEDS = {"attach_trainer", "RheoscopeCallback", "RheoscopeTracker"}  # with the integrations


@pytest.mark.filterwarnings("ignore")  # of the frameworks that pages show
@pytest.mark.parametrize("page", WITH_PYTHON, ids=names(WITH_PYTHON))
def test_every_python_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Pages of reports take seconds to draw, and have tests of their own.
    monkeypatch.setattr(
        report_module, "render", lambda subject, diagnosis=None, *, form: f"Written by Rheoscope. {form}"
    )
    # Nor is a process started to judge a run: that is tested beside the command.
    monkeypatch.setattr(watching, "_start", lambda command: None)
    found = surroundings()

    for number, block in enumerate(blocks(page, "python")):
        if SNIPPET.search(block) or any(f"rs.{name}" in block for name in NEEDS - set(rheoscope.__all__)):
            continue  # an example, which has a test of its own; or a part that is not here
        exec(compile(block, f"{page.name}, block {number}", "exec"), found)


def test_every_file_that_a_page_shows_is_an_example() -> None:
    shown = {name for page in PAGES for name in SNIPPET.findall(page.read_text(encoding="utf-8"))}

    assert shown
    assert {name for name in shown if not (ROOT / name).is_file() or not name.startswith("examples/")} == set()


def test_every_command_that_a_page_shows_is_one() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    shown = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("rheoscope ")]

    assert len(shown) > 15
    for name, *arguments in shown:
        if name in commands:
            commands[name].make_context(name, arguments)
        else:
            assert name in LATER


def test_every_toml_block_of_the_pages_is_a_file_of_suppressions(tmp_path: Path) -> None:
    from rheoscope.diagnostics.suppression import read_suppressions

    texts = [block for page in PAGES for block in blocks(page, "toml")]
    (tmp_path / "known.toml").write_text("\n".join(texts))

    assert len(read_suppressions(tmp_path / "known.toml")) == 2


@pytest.mark.parametrize("name", ["rules.md", "command_line.md", "decisions/index.md"])
def test_what_is_written_from_the_code_is_up_to_date(name: str) -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "benchmarks" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)

    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == reference.PAGES[name](), (
        "run python benchmarks/reference.py docs"
    )


def test_every_code_is_in_the_catalogue_of_rules() -> None:
    catalogue = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    rows = [row for row in FINDINGS_PAGE.splitlines() if row.startswith("| `")]

    assert [
        code
        for row in rows
        for code in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1])
        if f"`{code}`" not in catalogue
    ] == []


def test_every_page_is_in_the_navigation_and_every_link_leads_to_one() -> None:
    navigation = set(
        re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2], re.M)
    )
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    links = [
        (page, link)
        for page in (ROOT / "docs").rglob("*.md")
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if not link.startswith("http")
    ]

    assert {page for page in pages if not page.startswith("decisions/0")} == navigation
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
