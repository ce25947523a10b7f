"""A dozen Hugging Face types, judged by the zoo's oracles; `make zoo` runs them all."""

from __future__ import annotations

import warnings

import pytest
from zoo.examine import examined
from zoo.known import KNOWN

TYPES = "gpt2 llama bert t5 gemma2 olmo2 gpt_neox deepseek_v3 albert whisper mamba reformer".split()


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.filterwarnings("ignore")
def test_the_models_own_hidden_states_are_discovered(model_type: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = examined(model_type)

    assert row["outcome"] == "right", row
    assert row["known"] in ("right", "")


def test_at_least_sixty_placements_are_known() -> None:
    assert len(KNOWN) >= 60
