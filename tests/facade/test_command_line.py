"""The command line: what it prints, what it exits with, what it never imports."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rheoscope
import torch
from rheoscope.command_line import app, main
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiments import first_run as first_run_module
from rheoscope.lab.experiments import norm_placement_and_biases as experiment_module
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from typer.testing import CliRunner

TINY = Architecture(n_blocks=4, width=16, n_heads=2, context=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy check-up on disk."""
    tokens = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))
    target = tmp_path_factory.mktemp("recordings") / "healthy"
    examine(ReferenceTransformer(TINY, seed=0), tokens, label="healthy").save(target)
    return target


@pytest.fixture(scope="module")
def ill_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a NaN in one activation."""
    healthy = Recording.load(folder)
    tables = {name: healthy.table(name) for name in ("steps", "activations", "gradient_paths", "parameters")}
    tables["activations"].loc[5, "nonfinite"] = 3.0
    target = tmp_path_factory.mktemp("recordings") / "ill"
    Recording.from_tables({"label": "ill", "status": "closed"}, healthy.anatomy, tables).save(target)
    return target


def called(*arguments: object) -> tuple[int, str]:
    """Return the exit code and the output of one command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def exit_code_of_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    """Return what ``main`` exits with."""
    monkeypatch.setattr(sys, "argv", ["rheoscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_help_lists_every_command() -> None:
    code, text = called("--help")

    assert code == 0
    assert all(name in text for name in ("demo", "report", "compare", "check", "what-if"))


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert called("--version") == (0, f"rheoscope {version('rheoscope')}\n")


def test_report_writes_the_page_and_says_where(folder: Path, tmp_path: Path) -> None:
    code, text = called("report", folder, "-o", tmp_path / "page.html")

    assert code == 0
    assert str(tmp_path / "page.html") in text.replace("\n", "")
    assert "healthy" in (tmp_path / "page.html").read_text()


def test_report_never_imports_torch(folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from rheoscope.command_line import app\n"
        f"app(['report', {str(folder)!r}, '-o', {str(tmp_path / 'page.html')!r}], standalone_mode=False)\n"
        "sys.exit(sorted({'torch', 'captum', 'transformers'} & set(sys.modules)) or 0)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_check_of_a_healthy_recording_exits_0(folder: Path) -> None:
    code, text = called("check", folder, "--fail-on", "warning")

    assert code == 0
    assert "PASS" in text


def test_check_of_an_ill_recording_exits_1(ill_folder: Path) -> None:
    code, text = called("check", ill_folder)

    assert code == 1
    assert "FAIL" in text


def test_check_prints_json_that_machines_read(ill_folder: Path) -> None:
    _, text = called("check", ill_folder, "--json")

    assert json.loads(text)["verdict"] == "FAIL"


def test_check_passes_what_is_suppressed_with_a_reason_and_shows_it(
    ill_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = called("check", ill_folder, "--json")
    entries = [
        f'[[suppress]]\ncode = "{finding["code"]}"\nreason = "known, ticket 12"\n'
        for finding in json.loads(text)["findings"]
        if finding["severity"] == "error"
    ]
    (tmp_path / "rheoscope.toml").write_text("".join(entries) + '[[suppress]]\ncode = "idle"\nreason = "past"\n')
    monkeypatch.chdir(tmp_path)

    code, told = called("check", ill_folder)

    assert entries
    assert code == 0
    assert "Suppressed (known, ticket 12)" in told
    assert "The suppression of idle matched no finding" in told
    assert {entry["reason"] for entry in json.loads(called("check", ill_folder, "--json")[1])["suppressed"]} == {
        "known, ticket 12"
    }


def test_a_suppression_without_a_reason_is_a_wrong_use(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "known.toml").write_text('[[suppress]]\ncode = "nonfinite"\n')

    assert exit_code_of_main(monkeypatch, "check", folder, "--suppress", tmp_path / "known.toml") == 2
    assert "Expected a reason" in capsys.readouterr().err


def test_wrong_use_exits_2(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert exit_code_of_main(monkeypatch, "compare", folder) == 2
    assert exit_code_of_main(monkeypatch, "check", folder, "--fail-on", "nonsense") == 2


def test_a_folder_without_a_recording_exits_3_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of_main(monkeypatch, "report", tmp_path) == 3
    assert "Expected a folder with a recording" in capsys.readouterr().err


def test_compare_writes_one_page_of_two_recordings(folder: Path, ill_folder: Path, tmp_path: Path) -> None:
    code, _ = called("compare", folder, ill_folder, "-o", tmp_path / "page.html")

    assert code == 0
    text = (tmp_path / "page.html").read_text()
    assert "Comparison of healthy, ill" in text


def test_demo_writes_both_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, first_run_module, "first_run", n_steps=2)
    shrink(monkeypatch, experiment_module, "norm_placement_and_biases", n_steps=2, base=TINY, depths=(2, 4))

    code, text = called("demo", "--folder", tmp_path / "demo")

    assert code == 0
    assert {"report.html", "comparison.html"} < {path.name for path in (tmp_path / "demo").iterdir()}
    assert text.rstrip().endswith("report.html")


def shrink(monkeypatch: pytest.MonkeyPatch, module: object, name: str, **sizes: Any) -> None:
    """Replace an experiment by its own self with smaller sizes."""
    whole: Callable[..., object] = getattr(module, name)
    monkeypatch.setattr(module, name, partial(whole, **sizes))


def test_public_names_are_there_and_load_lazily() -> None:
    assert all(getattr(rheoscope, name) is not None for name in rheoscope.__all__)
    assert set(rheoscope.__all__) <= set(dir(rheoscope))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        rheoscope.nonsense  # noqa: B018


def test_examine_prints_the_anatomy_and_the_verdict(tmp_path: Path) -> None:
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 4, "vocab_size": 61, "n_positions": 64, "loss_type": "ForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))

    code, text = called("examine", tmp_path, "-o", tmp_path / "page.html")

    assert code == 0
    assert "4 blocks, 8 branches, pre-norm, LayerNorm." in text
    assert "├── LayerNorm ── attention + bias ──╯" in text
    assert "PASS" in text
    assert (tmp_path / "page.html").is_file()


def test_report_on_standard_output_is_the_document_alone(folder: Path) -> None:
    code, text = called("report", folder, "--format", "json", "-o", "-")

    assert code == 0
    assert json.loads(text)["verdict"] == "PASS"


def test_the_suffix_of_a_report_tells_its_form(folder: Path, tmp_path: Path) -> None:
    code, _ = called("report", folder, "-o", tmp_path / "report.md")

    assert code == 0
    assert (tmp_path / "report.md").read_text().startswith("<!-- Written by Rheoscope -->\n## PASS: healthy")


def test_a_comparison_is_written_as_markdown(folder: Path, ill_folder: Path) -> None:
    code, text = called("compare", folder, ill_folder, "--format", "markdown", "-o", "-")

    assert code == 0
    assert "### FAIL: ill" in text


@pytest.fixture(scope="module")
def departed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The healthy check-up with a gradient ten times as large at one state."""
    healthy = Recording.load(folder)
    tables = {name: healthy.table(name) for name in ("steps", "activations", "gradient_paths", "parameters")}
    rows = tables["activations"]
    chosen = (rows["site"] == "state") & (rows["direction"] == "backward") & (rows["depth"] == 3)
    assert chosen.any()
    rows.loc[chosen, "rms"] *= 10
    target = tmp_path_factory.mktemp("recordings") / "departed"
    Recording.from_tables({"label": "departed", "status": "closed"}, healthy.anatomy, tables).save(target)
    return target


def test_check_holds_a_run_against_a_baseline(departed: Path, folder: Path) -> None:
    _, alone = called("check", departed, "--json")
    code, beside = called("check", departed, "--baseline", folder, "--fail-on", "warning", "--json")
    codes = [finding["code"] for finding in json.loads(beside)["findings"]]

    assert "baseline-gradient" not in alone
    assert (code, codes.count("baseline-gradient")) == (1, 1)


def test_report_and_compare_hold_runs_against_a_baseline(departed: Path, folder: Path) -> None:
    _, report = called("report", departed, "--baseline", folder, "--format", "json", "-o", "-")
    _, comparison = called("compare", departed, folder, "--baseline", folder, "--format", "json", "-o", "-")
    variants = {variant["label"]: variant for variant in json.loads(comparison)["variants"]}

    assert "baseline-gradient" in [finding["code"] for finding in json.loads(report)["findings"]]
    assert "baseline-gradient" in [finding["code"] for finding in variants["departed"]["findings"]]
    assert "baseline-gradient" not in [finding["code"] for finding in variants["healthy"]["findings"]]


def test_a_baseline_of_another_model_exits_3(
    monkeypatch: pytest.MonkeyPatch, folder: Path, departed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))
    other = Architecture(n_blocks=4, width=8, n_heads=2, context=12)
    examine(ReferenceTransformer(other, seed=0), tokens).save(tmp_path / "other")

    assert exit_code_of_main(monkeypatch, "check", folder, "--baseline", tmp_path / "other") == 3
    assert "Expected a baseline of the same model" in capsys.readouterr().err
    assert exit_code_of_main(monkeypatch, "compare", folder, departed, "--baseline", tmp_path / "other") == 3


def test_what_if_writes_the_comparison_and_says_what_it_can_tell(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 61, "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps({**config, "loss_type": "ForCausalLM"}))

    code, text = called(
        "what-if",
        tmp_path,
        "--norm-placement",
        "post",
        "--no-biases",
        "--steps",
        2,
        "--seeds",
        1,
        "-o",
        tmp_path / "p.html",
    )

    assert code == 0
    assert "this is an ablation" in text
    assert "Fresh weights come from make()." in text
    assert "What if: post norm placement, biases off" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_what_if_without_a_choice_is_a_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 61, "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps({**config, "loss_type": "ForCausalLM"}))

    assert exit_code_of_main(monkeypatch, "what-if", tmp_path) == 2
    assert "Expected a choice to change, got none" in capsys.readouterr().err


def test_the_lab_lists_every_experiment_with_its_question() -> None:
    from rheoscope.lab.experiments import NAMES, experiment

    code, output = called("lab", "list")

    assert code == 0
    for name in NAMES:
        assert experiment(name).name == name
        assert name[:12] in output


def test_an_unknown_experiment_is_an_error_with_the_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of_main(monkeypatch, "lab", "alchemy") == 2
    assert "Expected one of the experiments" in capsys.readouterr().err


def test_doctor_says_what_is_here_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from rheoscope.probes.kernels import by_c

    monkeypatch.setattr(by_c, "kernel", None)
    code, text = called("doctor", "--json")
    rows = {row["part"]: row for row in json.loads(text)}

    assert code == 0
    assert rows["torch"]["found"] == torch.__version__
    assert rows["C kernel"]["state"] == "slow"
    assert "compiler" in rows["C kernel"]["advice"]
    assert all(row["advice"] for row in rows.values() if row["state"] != "ok")
    assert "C kernel: with a C compiler" in called("doctor")[1]


def test_own_models_are_asked_for_by_their_factory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of_main(monkeypatch, "lab", "scale-up") == 2
    assert "module:function" in capsys.readouterr().err
    code, output = called("lab", "coordinates", "--factory", "a:b", "--sizes", "12")
    assert code == 2
    assert "WIDTHxDEPTH" in output


def test_attribute_says_who_is_responsible_and_writes_it_into_a_report(tmp_path: Path) -> None:
    code, text = called("attribute", "attribute_target:built", "-o", tmp_path / "page.html")

    words = " ".join(text.split())
    assert code == 0
    assert "usefulness (" in words
    assert "Taking out block" in words
    assert "ledger (" in words
    assert "The largest gradient is that of block" in words
    assert "not causality" in words
    assert "block-usefulness" in (tmp_path / "page.html").read_text()


def test_attribute_answers_the_one_question_that_is_asked() -> None:
    code, text = called("attribute", "attribute_target:built", "--what", "gradient")

    assert code == 0
    assert "gradient (" in text
    assert "usefulness" not in text
