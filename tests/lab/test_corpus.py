"""Real text, the same at every call."""

from __future__ import annotations

import sysconfig
from itertools import islice
from pathlib import Path

import pytest
import torch
from rheoscope.lab import corpus as module
from rheoscope.lab.corpus import batches, corpus
from rheoscope.probes.errors import LabError


def test_the_corpus_is_the_standard_librarys_own_source() -> None:
    first = min(Path(sysconfig.get_path("stdlib")).glob("*.py"))

    head = first.read_bytes()[:1000]

    assert bytes(corpus()[: len(head)].tolist()) == head


def test_batches_are_deterministic() -> None:
    a, b = (list(islice(batches(3, 10, seed=7), 4)) for _ in range(2))

    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_another_seed_gives_another_batch() -> None:
    assert not torch.equal(next(batches(3, 10, seed=1)), next(batches(3, 10, seed=2)))


def test_a_batch_holds_inputs_and_their_successors_as_bytes() -> None:
    batch = next(batches(3, 10))

    assert batch.shape == (3, 11)
    assert (batch.dtype, int(batch.min()) >= 0, int(batch.max()) < 256) == (torch.int64, True, True)


def test_held_out_text_is_read_by_no_training_batch() -> None:
    text = corpus()
    border = int(len(text) * 0.9)
    window = next(batches(1, 200, seed=0, held_out=True))[0]

    starts = (text.unfold(0, 201, 1) == window).all(1).nonzero().flatten()

    assert len(starts) > 0
    assert bool((starts >= border).any())


def test_a_python_without_its_source_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    corpus.cache_clear()

    with pytest.raises(LabError, match=r"Expected the standard library's source in .*, got 0 bytes"):
        corpus()
    corpus.cache_clear()
