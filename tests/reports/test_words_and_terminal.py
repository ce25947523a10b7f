"""Findings in words, in the page's tables and in the terminal."""

import io
from dataclasses import replace

import pandas as pd
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.diagnostics.finding import Evidence, Finding
from rheoscope.probes.anatomy import Branch, Stack
from rheoscope.probes.branch_anatomy import AttentionAnatomy
from rheoscope.reports import words
from rheoscope.reports.grid import MOST_ROWS, grid
from rheoscope.reports.sketch import sketch
from rheoscope.reports.terminal import show
from rheoscope.reports.text_sketch import rows, text_sketch
from rich.console import Console


def finding(sentence: str, severity: str = "warning") -> Finding:
    return Finding(
        code="x",
        severity=severity,  # type: ignore[arg-type]
        confidence=0.5,
        block=3,
        component="mlp",
        module_path="h.3.mlp",
        step=7,
        sentence=sentence,
        evidence=Evidence("a ratio", 12.0, 1.0, "siblings", 3.0),
        remedy="Do this.",
    )


def printed(diagnosis: Diagnosis) -> str:
    out = io.StringIO()
    show(diagnosis, Console(file=out, width=200, force_terminal=False))
    return out.getvalue()


def test_evidence_tells_observation_expectation_and_limit() -> None:
    item = words.items(Diagnosis((finding("It is ill."),)))[0]

    assert item.evidence == "a ratio: 12, expected 1, limit 3 (siblings). Confidence 50%. Module h.3.mlp."


def test_verdict_counts_in_words() -> None:
    diagnosis = Diagnosis((finding("a"), finding("b", "info"), finding("c", "info")), ("d",))

    assert words.verdict_sentence(diagnosis) == "1 warning, 2 remarks; 1 matter was not judged."


def test_terminal_shows_verdict_sentence_and_remedy() -> None:
    text = printed(Diagnosis((finding("It is ill."),)))

    assert "WARN" in text
    assert "It is ill." in text
    assert "What to do: Do this." in text


def test_terminal_passes_on_no_control_sequence_and_no_markup() -> None:
    text = printed(Diagnosis((finding("\x1b]0;title\x07[link=https://evil.example]x[/link]"),)))

    assert "\x1b" not in text
    assert "[link=https://evil.example]x[/link]" in text


def test_a_long_table_says_what_it_leaves_out() -> None:
    text = grid(pd.DataFrame({"value": range(MOST_ROWS + 1)}))

    assert f"The first {MOST_ROWS} of {MOST_ROWS + 1} rows" in text
    assert text.count("<tr>") == MOST_ROWS + 1


def test_a_long_table_over_steps_shows_the_last_one() -> None:
    text = grid(pd.DataFrame({"step": [0] * MOST_ROWS + [9], "value": range(MOST_ROWS + 1)}))

    assert "Step 9 alone" in text
    assert text.count("<tr>") == 2


def branch(placement: str) -> Branch:
    return Branch(0, 0, 1, "attention", placement, "rmsnorm", output_bias="b")


def test_a_sketch_puts_each_norm_where_it_is() -> None:
    shown = {name: sketch([branch(name)]) for name in ("pre", "post", "double", "reordered", "none")}

    assert {name: str(svg).count('class="norm"') for name, svg in shown.items()} == {
        "pre": 1,
        "post": 1,
        "double": 2,
        "reordered": 1,
        "none": 0,
    }
    assert 'aria-label="One block: norm(x + attention(x))"' in shown["post"]
    assert "attention + bias" in shown["pre"]


def test_a_sketch_names_the_norm_of_queries_and_keys() -> None:
    plain_one = branch("pre")
    normed = replace(plain_one, attention=AttentionAnatomy(n_heads=4, qk_norm="rmsnorm"))

    assert "attention, QK-norm + bias" in sketch([normed])
    assert "attention, QK-norm + bias" in text_sketch([normed])
    assert "QK-norm" not in sketch([replace(plain_one, attention=AttentionAnatomy(qk_norm="none"))])


def test_a_text_sketch_reads_from_the_bottom_up() -> None:
    attention, mlp = branch("pre"), Branch(0, 0, 2, "mlp", "post", "layernorm", scale=2.0)

    assert text_sketch([attention, mlp]).splitlines() == [
        "↑",
        "▣ LayerNorm",
        "⊕◂────────╮",
        "├── MLP ──╯",
        "│ × 2",
        "⊕◂────────────────────────────────╮",
        "├── RMSNorm ── attention + bias ──╯",
        "│",
    ]


def test_blocks_that_are_alike_share_a_row() -> None:
    blocks = [
        Branch(0, i, i + 1, "mlp", "pre" if i < 3 else "double", "rmsnorm", ledger_error=1e-8 * i) for i in range(4)
    ]

    found = list(rows(Stack(0, tuple(blocks))))

    assert [(row[0], row[2], row[6]) for row in found] == [("0-2", "pre", "2 × 10⁻⁸"), ("3", "double", "3 × 10⁻⁸")]
