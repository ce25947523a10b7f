"""The documents say what the code does."""

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
