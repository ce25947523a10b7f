"""What the lab's measuring tools give where the answer is known; the fast claims of the published papers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rheoscope.diagnostics.study import DIFFERS
from rheoscope.lab.byte_pairs import bytes_per_token, encoded
from rheoscope.lab.corpus import corpus
from rheoscope.lab.experiment import Setting
from rheoscope.lab.experiments import experiment
from rheoscope.lab.operator_time import class_of, forward_and_backward, of_contractions
from rheoscope.lab.sharpness import sharpness
from torch import nn


def test_sharpness_is_the_largest_eigenvalue_of_the_hessian() -> None:
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix = root @ root.T
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)

    value, vector = sharpness(lambda: 0.5 * x @ matrix @ x, [x], [torch.randn(6, dtype=torch.float64)], iterations=400)

    expected = torch.linalg.eigvalsh(matrix)[-1]
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert torch.allclose(matrix @ vector[0], expected * vector[0], rtol=1e-4, atol=1e-4)


def test_operations_of_a_linear_layer_are_six_a_weight_and_token() -> None:
    layer = nn.Linear(16, 32)

    assert of_contractions(forward_and_backward(layer, torch.randn(10, 16))) == 6 * 10 * 16 * 32
    assert [class_of(name) for name in ("addmm", "_softmax", "native_layer_norm", "add_", "gelu")] == [
        "tensor contraction",
        "normalisation and softmax",
        "normalisation and softmax",
        "element-wise",
        "element-wise",
    ]


def test_byte_pairs_stand_for_the_text_and_single_bytes_for_themselves() -> None:
    tokens, n_bytes = encoded(256)

    assert torch.equal(tokens, corpus()[: len(tokens)])
    assert n_bytes == len(tokens)
    pytest.importorskip("tokenizers")
    assert bytes_per_token(300) > 1.05
    assert int(encoded(300)[0].max()) < 300


@pytest.mark.parametrize("name", ["takase", "xiong", "ivanov"])
def test_what_is_published_of_models_at_init_holds(name: str, tmp_path: Path) -> None:
    study = experiment(name).study(Setting(tmp_path, is_quick=True, seeds=(0, 1)))

    assert not (study.claims["verdict"] == DIFFERS).any(), study.claims
    assert (study.claims["verdict"] == "agrees").sum() >= 0.7 * len(study.claims)
    assert len(study.curves)
