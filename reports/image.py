"""Write one chart of a report as a picture for a paper or a slide: SVG, PNG or PDF, drawn by kaleido in a local Chrome."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap

import plotly.graph_objects as go
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.probes.errors import ReportError
from rheoscope.probes.recording import Recording

from .content import content
from .figures.chart import Chart
from .output import write_bytes
from .theme import plain, plot_text

FORMS = ("svg", "png", "pdf")
WIDTH, SCALE = 900, 2  # points; pixels a point of a PNG
_TITLE_LINE = 95  # characters


def write_chart(subject: Recording | Comparison, key: str, path: str | Path) -> Path:
    """Write the chart ``key`` of the report of ``subject`` to ``path`` (.svg, .png or .pdf) and return its absolute path.

    Args:
        subject: what the report would show.
        key: the chart's anchor in the page, such as ``gradient-by-depth``.
        path: an earlier picture there is replaced, anything else is left alone.

    Raises:
        ReportError: there is no such chart or nothing to draw in it, the suffix is none of the three, the path cannot be
            written, or kaleido or a Chrome for it is not installed.
        RecordingError: a table cannot be read.
    """
    form = Path(path).suffix.lower().removeprefix(".")
    if form not in FORMS:
        raise ReportError(
            f"Expected a picture's path to end in .svg, .png or .pdf, got {str(path)!r}. Change its suffix."
        )
    charts = {chart.key: chart for section in content(subject).sections for chart in section.charts}
    if key not in charts:
        raise ReportError(f"Expected the key of a chart, got {key!r}. Pass one of {', '.join(charts)}.")
    if charts[key].figure is None:
        raise ReportError(f"Expected a chart with something to draw, got {key!r}: {charts[key].absent}")
    return write_bytes(_drawn(_titled(charts[key]), form), path)


def _titled(chart: Chart) -> go.Figure:
    drawn = copy.deepcopy(chart.figure)
    assert drawn is not None
    lines = wrap(chart.title, _TITLE_LINE)
    top = 30 + 22 * len(lines)
    text = "<br>".join(plot_text(line) for line in lines)
    legend = 24 if drawn.layout.showlegend is not False and len(drawn.data) > 1 else 0
    return drawn.update_layout(
        title={"text": text, "x": 0.02, "xanchor": "left", "y": 0.98, "yanchor": "top", "font": {"size": 15}},
        margin={"t": top + legend},
        height=(drawn.layout.height or 360) + top,
        width=WIDTH,
        paper_bgcolor="white",
    )


def _drawn(figure: go.Figure, form: str) -> bytes:
    if find_spec("kaleido") is None:
        raise ReportError(
            "Expected kaleido, which draws pictures of charts, got none installed. pip install 'rheoscope[pictures]', "
            "or use the page's own button Download plot, which needs neither."
        )
    try:
        picture: bytes = figure.to_image(format=form, scale=SCALE if form == "png" else 1)
    except Exception as error:
        raise ReportError(
            f"Expected a Chrome or Chromium that kaleido can start, got {type(error).__name__}: {plain(error, 200).strip()} "
            "Install one (apt install chromium, or plotly_get_chrome), name it in BROWSER_PATH, or use the page's own "
            "button Download plot."
        ) from error
    return picture
