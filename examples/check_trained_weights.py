"""Examine really trained weights: an ALBERT for chemistry out of a wheel of 3 MB.

pip download --no-deps rxnmapper==0.4.3 && python examples/check_trained_weights.py
"""

import tempfile
import zipfile
from pathlib import Path

import rheoscope as rs
import torch
from transformers import AlbertForMaskedLM

INSIDE = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/"
# Two esterifications and an amide coupling, as tokens of reaction SMILES.
REACTIONS = (
    "C C O . C C ( = O ) O >> C C O C ( C ) = O",
    "C O . C C C ( = O ) O >> C C C ( = O ) O C",
    "C N . C C ( = O ) Cl >> C N C ( C ) = O",
)


def main() -> None:
    """Mask every seventh token of known reactions, and see how signal and gradient flow through trained weights."""
    wheel = next(Path().glob("rxnmapper-*.whl"))
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(wheel) as archive:
        archive.extractall(place, [name for name in archive.namelist() if name.startswith(INSIDE)])
        words = (Path(place) / INSIDE / "vocab.txt").read_text().split()
        model = AlbertForMaskedLM.from_pretrained(Path(place) / INSIDE, attn_implementation="eager")
    number = {word: index for index, word in enumerate(words)}
    rows = [[number[word] for word in ("[CLS]", *reaction.split(), "[SEP]")] for reaction in REACTIONS]
    length = max(map(len, rows))
    tokens = torch.tensor([row + [number["[PAD]"]] * (length - len(row)) for row in rows])
    there = tokens != number["[PAD]"]
    hidden = there & (torch.arange(length) % 7 == 3)
    batch = {"input_ids": tokens.masked_fill(hidden, number["[MASK]"]), "attention_mask": there.long()}
    recording = rs.examine(model, {**batch, "labels": tokens.masked_fill(~hidden, -100)}, label="rxnmapper's ALBERT")
    print("Loss on the masked tokens:", round(recording.table("steps")["loss"].iloc[0], 3))
    for finding in rs.diagnose(recording):
        print(f"{finding.severity:8} {finding.sentence}")
    print("Report:", rs.write_report(recording, "trained.html"))


if __name__ == "__main__":
    main()
