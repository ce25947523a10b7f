"""``python -m zoo.timm_types``: discover timm's vision transformers, as many kinds as there are, and write docs/zoo_timm.md.

The oracle is timm's own ``forward_intermediates``: the output of every block must be among the discovered states.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.anatomy import LEDGER_TOLERANCE
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import RheoscopeError
from rich.progress import track
from torch import Tensor, nn

from .build import Specimen
from .examine import states
from .oracle import judge
from .stubs import stub_torchvision

TYPES = (
    "vit_tiny_patch16_224 vit_small_patch16_18x2_224 vit_medium_patch16_gap_240 vit_relpos_small_patch16_224 "
    "vit_srelpos_small_patch16_224 vit_little_patch16_reg4_gap_256 vit_pwee_patch16_reg1_gap_256 deit_tiny_patch16_224 "
    "deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 beitv2_base_patch16_224 "
    "eva02_tiny_patch14_224 cait_xxs24_224 convit_tiny crossvit_tiny_240 xcit_nano_12_p16_224 swin_tiny_patch4_window7_224 "
    "swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 twins_pcpvt_small twins_svt_small pvt_v2_b0 mvitv2_tiny davit_tiny "
    "nest_tiny tnt_s_legacy_patch16_224 hiera_tiny_224 mixer_s32_224 gmixer_24_224 resmlp_12_224 gmlp_s16_224 "
    "poolformer_s12 coat_tiny coat_lite_tiny levit_128s visformer_tiny volo_d1_224 maxvit_pico_rw_256 edgenext_xx_small"
)
SEED = 0
STEMS = {
    "maxvit_pico_rw_256": "The first of timm's intermediates is the convolutional stem's output, which no block has made."
}


def main() -> None:
    """Discover every type and write the table."""
    stub_torchvision()
    torch.set_num_threads(1)
    rows = [examined(name) for name in track(TYPES.split(), description="timm")]
    page = Path("docs/zoo_timm.md")
    page.write_text(written(rows), encoding="utf-8")
    sys.stdout.write(f"{page}\n")


def examined(name: str) -> dict[str, str]:
    """Return one row: what was found, what the oracle says, what failed."""
    import timm

    row = {
        "type": name,
        "outcome": "",
        "adds": "",
        "placement": "",
        "norms": "",
        "ledger": "",
        "complete": "",
        "cause": "",
    }
    torch.manual_seed(SEED)
    try:
        model: nn.Module = timm.create_model(name, pretrained=False).eval()
    except Exception as error:
        return row | {"outcome": "not built", "cause": f"{type(error).__name__}: {error!s:.160}"}
    size: Any = model.default_cfg["input_size"]  # type: ignore[index]
    batch = {"x": torch.randn(1, *size)}
    start = time.perf_counter()
    try:
        anatomy = discover(model, batch["x"])
    except RheoscopeError as error:
        return row | {"outcome": "no stream", "cause": f"{error!s:.200}"}
    row["seconds"] = f"{time.perf_counter() - start:.1f}"
    closed = [b.ledger_error is not None and b.ledger_error <= LEDGER_TOLERANCE for b in anatomy.branches]
    told = intermediates(model, batch["x"])
    if name in STEMS:
        told.pop("block 0", None)
    verdict = judge(told, list(states(_of(model, batch), anatomy).values()))
    asked = "no oracle" if not verdict.is_asked else "right" if verdict.is_right else "wrong"
    error = anatomy.ledger_error
    return row | {
        "outcome": asked if asked != "wrong" or not anatomy.is_complete else "wrong and confident",
        "adds": "+".join(str(len(stack.branches)) for stack in anatomy.stacks),
        "placement": ", ".join(f"{k} {n}" for k, n in Counter(b.placement for b in anatomy.branches).most_common()),
        "norms": anatomy.norm_kind,
        "ledger": "" if error is None else f"{error:.1e}",
        "complete": "yes" if anatomy.is_complete else f"{sum(closed)} of {len(closed)}",
        "cause": " ".join([*_missing(verdict.missing), *anatomy.problems[:1], STEMS.get(name, "")])[:240],
    }


def _missing(names: list[str]) -> list[str]:
    return [f"Missing {', '.join(names[:3])}."] if names else []


def intermediates(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Return what timm's own method says that the blocks put out; none where a model has no such method."""
    method = getattr(model, "forward_intermediates", None)
    if method is None:
        return {}
    for options in ({"intermediates_only": True, "output_fmt": "NLC"}, {"intermediates_only": True}):
        try:
            with torch.no_grad():
                found = method(batch, **options)
        except Exception:
            continue
        return {f"block {index}": tensor.float() for index, tensor in enumerate(found)}
    return {}


def _of(model: nn.Module, batch: dict[str, Tensor]) -> Specimen:
    return Specimen(model, batch, None, "")


def written(rows: list[dict[str, str]]) -> str:
    """Return the page."""
    import timm

    counts = Counter(row["outcome"] for row in rows)
    asked = counts["right"] + counts["wrong"] + counts["wrong and confident"]
    columns = ("type", "outcome", "adds", "placement", "norms", "ledger", "complete", "cause")
    lines = [
        "# timm's vision transformers",
        "",
        f"timm {timm.__version__} with random weights, torchvision stubbed. Written by `make zoo`. The oracle is timm's own",
        "`forward_intermediates`: what every block puts out must be among the discovered states. Types whose blocks sit between",
        "convolutional stages put out what no state is; they are listed as they came.",
        "",
        f"- {counts['right']} of {asked} that the oracle knows are right; {counts['no oracle']} without one.",
        f"- {sum(row['complete'] == 'yes' for row in rows)} complete; {counts['wrong and confident']} wrong and confident.",
        f"- {counts['no stream']} refused, {counts['not built']} not built.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    lines += [f"| {' | '.join(row[column].replace('|', '/') for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
