"""Models from configs and from the user's own function."""

import json
from pathlib import Path

import pytest
import torch
from rheoscope.lab.built import build, built, maker
from rheoscope.lab.stored import load_weights, weight_files
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
        (__file__, "which would train"),
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as save_pretrained leaves it, in bfloat16, with a tokenizer of single bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("checkpoint")
    config_file(folder, model_type="gpt2", **{**SMALL, "vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0})
    model = build(str(folder)).model
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias.fill_(0.5)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_weights_of_a_folder_are_read_and_real_text_by_its_tokenizer(checkpoint: Path) -> None:
    found = build(str(checkpoint))

    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    assert found.model.transformer.h[1].mlp.c_fc.bias.unique().tolist() == [0.5]
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}
    assert (
        found.batch["input_ids"][0, :3].tolist()
        != build(str(checkpoint / "config.json")).batch["input_ids"][0, :3].tolist()
    )
    assert "read as float32" in found.notes[0]
    assert "by the folder's tokenizer" in found.notes[-1]


def test_a_checkpoint_is_laid_over_a_model_by_name_whatever_wraps_it(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = build(str(checkpoint)).model
    save_file(
        {f"module.{name}": tensor.clone() for name, tensor in source.state_dict().items()}, tmp_path / "a.safetensors"
    )
    target = build(str(checkpoint / "config.json")).model

    assert load_weights(target, tmp_path / "a.safetensors") == []
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), source.parameters(), strict=True))


def test_a_checkpoint_of_another_model_is_refused(checkpoint: Path) -> None:
    with pytest.raises(LabError, match="Expected the weights of this model"):
        load_weights(nn.Linear(2, 2), checkpoint)


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))

    with pytest.raises(LabError, match="got fewer"):
        weight_files(tmp_path)


def test_pickled_weights_are_not_read_and_that_is_said(tmp_path: Path) -> None:
    config_file(tmp_path, model_type="gpt2", **SMALL)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")

    assert "would have to be unpickled" in build(str(tmp_path)).notes[0]
