"""A sweep carries out every run once, whatever kills it, on processes or on a cluster."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiment import Setting
from rheoscope.lab.learning_rates import at_best, loss_curves, swept
from rheoscope.lab.run import Run, carried_out
from rheoscope.lab.stability import largest_stable
from rheoscope.lab.sweep import RESULTS, sweep
from rheoscope.lab.tasks import floor_of_recall, task
from rheoscope.probes.errors import LabError
from rheoscope.probes.recording import Recording

TINY = Architecture(n_blocks=1, width=16, n_heads=2, vocabulary=17, context=8)
RUNS = [Run(TINY, lr=lr, seed=seed, n_steps=6, batch=4) for lr in (1e-3, 1e-2) for seed in (0, 1)]
OWN = ["cpu_seconds", "recording"]  # what differs between machines


class Here(Executor):
    """Carries out what it is given at once, in this process."""

    n = 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.n += 1
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def test_a_sweep_gives_a_row_a_run_with_all_its_fields_and_what_came_of_it(tmp_path: Path) -> None:
    frame = sweep([*RUNS, RUNS[0]], tmp_path, executor=Here())

    assert len(frame) == 4
    assert frame["lr"].tolist() == [1e-3, 1e-3, 1e-2, 1e-2]
    assert set(frame["error"]) == {""}
    alone = carried_out(RUNS[2])
    assert frame.loc[2, "last_loss"] == alone["last_loss"]
    assert {"width", "norm_placement", "task", "weight_decay"} <= set(frame.columns)


def test_a_finished_run_is_not_carried_out_again(tmp_path: Path) -> None:
    first = sweep(RUNS[:2], tmp_path, executor=Here())
    executor = Here()

    again = sweep(RUNS, tmp_path, executor=executor)

    assert executor.n == 2
    pd.testing.assert_frame_equal(again[:2], first)


def test_a_run_that_fails_is_a_row_and_stops_no_other(tmp_path: Path) -> None:
    bad = Run(replace(TINY, vocabulary=17), lr=1e-3, task="text", n_steps=2)

    frame = sweep([bad, RUNS[0]], tmp_path, executor=Here())

    assert frame["error"].str.startswith("LabError: Expected a vocabulary of at least 256").tolist() == [True, False]
    assert frame["last_loss"].notna().tolist() == [False, True]


def test_a_diverging_run_is_a_result(tmp_path: Path) -> None:
    wild = Run(replace(TINY, norm_placement="none"), lr=1e6, n_steps=30, optimizer="sgd", clip=0.0, warm_up=0)

    row = carried_out(wild, tmp_path)

    assert row["has_diverged"]
    assert row["last_loss"] == pytest.approx(wild.chance)


def test_a_line_that_a_kill_cut_is_left_out_and_its_run_done_again(tmp_path: Path) -> None:
    whole = sweep(RUNS, tmp_path, executor=Here())
    path = tmp_path / RESULTS
    path.write_bytes(path.read_bytes()[:-20])
    executor = Here()

    again = sweep(RUNS, tmp_path, executor=executor)

    assert executor.n == 1
    pd.testing.assert_frame_equal(again.drop(columns=OWN), whole.drop(columns=OWN))


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("no results\n")

    with pytest.raises(LabError, match="Expected the results of a sweep"):
        sweep(RUNS, tmp_path, executor=Here())


def test_a_sweep_that_is_killed_half_way_ends_with_every_run_once(tmp_path: Path) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            from rheoscope.lab.architecture import Architecture
            from rheoscope.lab.run import Run
            from rheoscope.lab.sweep import sweep

            if __name__ == "__main__":
                tiny = Architecture(n_blocks=1, width=16, n_heads=2, vocabulary=17, context=8)
                runs = [Run(tiny, lr=1e-3, seed=seed, n_steps=40, batch=4) for seed in range(12)]
                print(len(sweep(runs, {str(tmp_path / "runs")!r})))
            """
        )
    )
    path = tmp_path / "runs" / RESULTS
    how: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "env": os.environ | {"OMP_NUM_THREADS": "1"},
        "start_new_session": True,
    }
    killed = subprocess.Popen([sys.executable, str(script)], **how)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = path.read_text().splitlines()
    assert 3 <= len(before) < 12

    again = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True, env=how["env"])

    lines = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert again.stdout.strip() == "12"
    assert len(lines) == len(set(lines)) == 12
    assert path.read_text().splitlines()[: len(before) - 1] == before[:-1]


def test_a_cluster_gives_the_same_frame(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        on_cluster = sweep(RUNS, tmp_path / "cluster", executor=client.get_executor())
    here = sweep(RUNS, tmp_path / "here", executor=Here())

    pd.testing.assert_frame_equal(on_cluster.drop(columns=OWN), here.drop(columns=OWN))


def test_a_run_under_probes_leaves_a_recording_and_trains_the_same(tmp_path: Path) -> None:
    plain, probed = (carried_out(replace(RUNS[0], every=every), tmp_path) for every in (0, 3))

    assert plain["last_loss"] == probed["last_loss"]
    assert Recording.load(probed["recording"]).table("steps")["step"].tolist() == list(range(6))


def test_recordings_are_found_where_the_folder_is_now(tmp_path: Path) -> None:
    run = replace(RUNS[0], every=3)
    sweep([run], tmp_path / "first", executor=Here())
    (tmp_path / "first").rename(tmp_path / "moved")

    frame = sweep([run], tmp_path / "moved", executor=Here())

    assert len(Recording.load(frame.loc[0, "recording"]).table("steps")) == run.n_steps


def test_every_variant_is_judged_at_its_own_best_learning_rate(tmp_path: Path) -> None:
    setting = Setting(tmp_path, seeds=(0, 1), executor=Here())
    variants = {"pre": RUNS[0], "none": replace(RUNS[0], architecture=replace(TINY, norm_placement="none"))}

    frame = swept(variants, (1e-3, 3e-2), setting)
    best = at_best(frame)

    assert best["label"].tolist() == ["pre", "none"]
    for row in best.itertuples():
        mine = frame[frame["label"] == row.label].groupby("lr")["last_loss"].mean()
        assert row.best_lr == mine.idxmin()
        assert row.loss_mean == pytest.approx(mine.min())
        assert row.sensitivity == pytest.approx((mine - mine.min()).mean())
    assert set(loss_curves(frame)["series"]) == {"pre", "none"}


def test_the_largest_stable_rate_is_the_last_before_half_of_what_was_learned_is_lost() -> None:
    losses = {1e-3: [3.0, 3.2], 1e-2: [1.0, 1.2], 3e-2: [1.4, 2.4], 1e-1: [1.1, 2.7], 1.0: [1.2, 1.2]}

    assert largest_stable(losses, untrained=4.1) == 3e-2  # the limit is 2.6; beyond a rate that fails none counts
    assert largest_stable({1e-3: [4.0], 1e-2: [math.inf]}, untrained=4.1) is None  # nothing is learned
    assert largest_stable({1e-3: [1.0, math.inf], 1e-2: [2.0, 2.0]}, untrained=4.1) == 1e-2


def test_the_task_has_the_floor_that_is_claimed() -> None:
    assert floor_of_recall(64) == pytest.approx(1.312, abs=1e-3)
    batch = next(task("recall")(64, 400, 48, 0))
    follows = (batch[:, 2:] == _rule(batch)[batch[:, :-2]]).double().mean()

    assert float(follows) == pytest.approx(0.8 + 0.2 / 64, abs=0.01)


def _rule(batch: Any) -> Any:
    """Return, for every token, what most often comes two places behind it."""
    import torch

    counts = torch.zeros(64, 64)
    counts.index_put_((batch[:, :-2].flatten(), batch[:, 2:].flatten()), torch.ones(1), accumulate=True)
    return counts.argmax(1)


@pytest.mark.parametrize(
    ("choice", "words"), [({"lr": 0.0}, "lr > 0"), ({"optimizer": "lion"}, "'lion'"), ({"task": "sums"}, "'sums'")]
)
def test_a_run_that_makes_no_sense_is_refused_before_it_begins(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(LabError, match=words):
        Run(**{"architecture": TINY, "lr": 1e-3} | choice)
