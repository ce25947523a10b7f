"""Write a report: as a page, as JSON, as Markdown or as text, to a file or to standard output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.diagnostics.study import Study
from rheoscope.probes.errors import ReportError
from rheoscope.probes.recording import Recording

from .as_json import as_json
from .as_markdown import as_markdown
from .content import ComparisonContent, RunContent, content
from .output import write_text
from .page import page
from .study_content import StudyContent, study_content
from .terminal import as_text

Form = Callable[[RunContent | ComparisonContent | StudyContent], str]
FORMS: dict[str, Form] = {"html": page, "json": as_json, "markdown": as_markdown, "text": as_text}
SUFFIXES = {".json": "json", ".md": "markdown", ".txt": "text"}  # any other is a page


def write_report(
    subject: Recording | Comparison | Study,
    path: str | Path = "report.html",
    diagnosis: Diagnosis | None = None,
    *,
    form: str | None = None,
) -> Path:
    """Write the report of a recording, a comparison or an experiment to one file that needs no network.

    Args:
        subject: what to show.
        path: of the file; an earlier report there is replaced, anything else is left alone. ``-`` is standard output.
        diagnosis: the verdict on a recording; judged here if it is not given.
        form: html, json, markdown or text; by default the suffix of ``path`` tells (.json, .md, .txt, else html).

    Returns:
        The absolute path of the file.

    Raises:
        ReportError: ``subject`` or ``form`` is none of these, or the path cannot be written.
        RecordingError: a table cannot be read.
    """
    chosen = form or SUFFIXES.get(Path(path).suffix.lower(), "html")
    return write_text(render(subject, diagnosis, form=chosen), path)


def render(subject: Recording | Comparison | Study, diagnosis: Diagnosis | None = None, *, form: str = "html") -> str:
    """Return the report as text; the same for the same recording, to the byte.

    Raises:
        ReportError: ``subject`` is none of these, or ``form`` is none of the four.
    """
    if form not in FORMS:
        raise ReportError(f"Expected a form among {list(FORMS)}, got {form!r}. Pass one of these.")
    return FORMS[form](study_content(subject) if isinstance(subject, Study) else content(subject, diagnosis))
