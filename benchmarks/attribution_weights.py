"""Ask blocks of a really pretrained model what they are worth, and those of the same weights in shuffled order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rheoscope.diagnostics.attributed import block_usefulness, is_predictive, loss_of_knock_outs
from rheoscope.diagnostics.opened import opened
from rheoscope.probes.attribution import output_ledger, usefulness
from rheoscope.probes.check_up import examine
from rheoscope.reports.report import render  # noqa: TID251 - a benchmark wires rooms as the facade does
from rich.progress import Progress
from torch import Tensor, nn

HOW = (
    "folder with antiberty/trained_models: pip download --no-deps antiberty==0.1.3, and unzip the wheel there; without it the "
    "section on pretrained weights says so"
)
N_SHUFFLES, N_MASKS, MASKED = 3, 2, 0.15
# Published variable domains of therapeutic antibodies: trastuzumab (heavy, light), adalimumab (heavy, light), bevacizumab,
# rituximab, pembrolizumab and nivolumab (heavy).
SEQUENCES = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
    "EVQLVESGGGLVQPGGSLRLSCAASGYTFTNYGMNWVRQAPGKGLEWVGWINTYTGEPTYAADFKRRFTFSLDTSKSTAYLQMNSLRAEDTAVYYCAKYPHYYGSSHWYFDVWGQGTLVTVSS",
    "QVQLQQPGAELVKPGASVKMSCKASGYTFTSYNMHWVKQTPGRGLEWIGAIYPGNGDTSYNQKFKGKATLTADKSSSTAYMQLSSLTSEDSAVYYCARSTYYGGDWYFNVWGAGTTVTVSA",
    "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS",
    "QVQLVESGGGVVQPGRSLRLDCKASGITFSNSGMHWVRQAPGKGLEWVAVIWYDGSKRYYADSVKGRFTISRDNSKNTLFLQMNSLRAEDTAVYYCATNDDYWGQGTLVTVSS",
)


def real_weights(folder: Path | None, progress: Progress) -> str:
    """Return the section on pretrained weights."""
    title = "## Pretrained weights, and the same shuffled\n"
    if folder is None:
        return f"{title}\nNot measured here: make attribution WEIGHTS=FOLDER; {HOW}.\n"
    batch = _batch(folder / "antiberty" / "trained_models" / "vocab.txt")
    rows, seen = [], []
    for shuffle in progress.track([None, *range(N_SHUFFLES)], description="pretrained weights"):
        model = _model(folder / "antiberty" / "trained_models" / "AntiBERTy_md_smooth")
        if shuffle is not None:
            _shuffle(model, shuffle)
        recording = usefulness(model, batch).into(examine(model, batch, label="antiberty"))
        if shuffle is None:
            recording = output_ledger(model, batch).into(recording)
            page = render(recording)
            assert "block-usefulness" in page
            told = next(line for line in render(recording, form="markdown").splitlines() if "Without block" in line)
            seen = [f"{row:+.3f}" for row in block_usefulness(opened(recording))["knock_out"]]
        tables = opened(recording)
        frame = block_usefulness(tables)
        gain = tables.attributions[tables.attributions["method"] == "gain"].iloc[-1]
        rows.append(
            f"| {'pretrained' if shuffle is None else f'shuffled, {shuffle}'} | {loss_of_knock_outs(tables):.3f} "
            f"| {gain['value']:+.3f} ± {gain['standard_error']:.3f} | {'yes' if is_predictive(tables) else 'no'} "
            f"| {int(frame['is_useful'].astype(bool).sum())} of {len(frame)} "
            f"| {frame['knock_out'].min():+.3f} to {frame['knock_out'].max():+.3f} |"
        )
    return f"""{title}
antiberty 0.1.3 (MIT), a BERT of 8 post-norm blocks x 512 trained on antibodies, from its wheel; {len(SEQUENCES)} published
variable domains, each with {N_MASKS} draws of {MASKED:.0%} masked residues. *Shuffled*: the elements of every matrix in random
order, so that all norms of weights stay. *Gain*: loss of the mean of the model's own predictions over residues, less its loss, ±
a standard error over the sequences. Predictions that know nothing of what they predict have no gain but by chance, because
cross-entropy is convex. A block is counted as useful where the gain is above 3 standard errors and so is the rise of the loss
without it: that is how the two are told apart, for knock-outs change the loss of a shuffled model as well, up and down.

| weights | loss | gain | above chance | useful blocks | knock-outs, least to most |
|---|---|---|---|---|---|
{chr(10).join(rows)}

Knock-outs of the pretrained blocks, first to last: {", ".join(seen)}. The report's title: "{told.lstrip("- ")}"
"""


def _batch(vocabulary: Path) -> dict[str, Tensor]:
    number = {token: index for index, token in enumerate(vocabulary.read_text().split())}
    rows = [[number["[CLS]"], *(number[residue] for residue in text), number["[SEP]"]] for text in SEQUENCES] * N_MASKS
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[number["[PAD]"]] * (length - len(row))] for row in rows])
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.rand(ids.shape, generator=generator) < MASKED) & (ids > number["[MASK]"])
    return {
        "input_ids": ids.masked_fill(hidden, number["[MASK]"]),
        "attention_mask": (ids != number["[PAD]"]).long(),
        "labels": ids.masked_fill(~hidden, -100),
    }


def _model(folder: Path) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    given: dict[str, Any] = json.loads((folder / "config.json").read_text())
    names = (
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
    )
    model = BertForMaskedLM(BertConfig(**{name: given[name] for name in names}))
    # Weights alone are read, and nothing is executed; the product itself reads no such files.
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")  # noqa: TID251
    missing = model.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise ValueError(
            f"Expected all weights in {folder}, got none for {missing[:3]}. Pass the wheel of version 0.1.3."
        )
    return model.eval()


def _shuffle(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
