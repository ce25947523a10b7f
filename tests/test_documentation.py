"""The documents say what the code does."""

import ast
import re
from pathlib import Path

import pytest
from rheoscope.probes.schema import FORMAT, TABLES

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
