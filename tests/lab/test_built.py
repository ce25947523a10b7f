"""Models from configs and from the user's own function."""

import json
from pathlib import Path

import pytest
import torch
from rheoscope.lab.built import built, maker
from rheoscope.probes.discovery.dissect import discover
from rheoscope.probes.errors import LabError
from torch import nn

SMALL = {"n_embd": 16, "n_head": 2, "n_layer": 3, "vocab_size": 61, "n_positions": 64, "loss_type": "ForCausalLM"}


def config_file(folder: Path, **values: object) -> Path:
    """Write a config.json and return its path."""
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


def test_a_config_file_gives_a_model_and_a_batch_that_fits(tmp_path: Path) -> None:
    model, batch = built(str(config_file(tmp_path, model_type="gpt2", **SMALL)))

    assert discover(model, batch).n_blocks == 3


def test_the_folder_of_a_config_serves_as_well(tmp_path: Path) -> None:
    config_file(tmp_path, model_type="gpt2", **SMALL)

    model, _ = built(str(tmp_path), n_blocks=2)

    assert model.config.n_layer == 2


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    path = str(config_file(tmp_path, model_type="gpt2", **SMALL))

    (first, _), (second, _) = built(path), built(path)

    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_config_is_built_anew_with_the_weights_of_the_seed(tmp_path: Path) -> None:
    path = str(config_file(tmp_path, model_type="gpt2", **SMALL))
    make = maker(path)
    assert make is not None

    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        found.append(make().transformer.wte.weight)

    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert maker("module:function") is None  # it may return a checkpoint


def test_a_function_of_the_users_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_model.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(2, 2), torch.ones(1, 2)"
    )
    monkeypatch.chdir(tmp_path)

    model, batch = built("their_model:make")

    assert isinstance(model, nn.Linear)
    assert isinstance(batch, torch.Tensor)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no-such-type", "Expected a config.json, its folder, a model type"),
        ("no_such_module:make", "Expected module:function that can be imported"),
        ("json:loads_of_nothing", "Expected module:function that can be imported"),
    ],
)
def test_a_wrong_target_is_a_clear_error(target: str, words: str) -> None:
    with pytest.raises(LabError, match=words):
        built(target)


def test_a_config_without_a_type_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="Expected a Hugging Face config with a model_type"):
        built(str(config_file(tmp_path, n_layer=2)))


def test_a_model_that_would_not_fit_is_refused_before_it_is_made(tmp_path: Path) -> None:
    path = config_file(tmp_path, model_type="gpt2", **{**SMALL, "n_embd": 20_000, "n_layer": 90})

    with pytest.raises(LabError, match=r"Expected a model of at most 8 GiB, got .*Pass --blocks"):
        built(str(path))
