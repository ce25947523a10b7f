"""Make batches that a model's forward may accept, from the names of its arguments and its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

IDS = (2, 9)


def kits(model: nn.Module, config: Any) -> Iterator[dict[str, Any]]:
    """Yield batches, the likeliest first."""
    names = set(inspect.signature(model.forward).parameters)
    generator = torch.Generator().manual_seed(0)
    main = getattr(model, "main_input_name", "input_ids")
    found = [*_series(names, config, generator), *_text(names, config, generator), *_images(names, config, generator)]
    found += [*_sound(names, config, generator), *_embedded(names, config, generator)]
    dummy = _dummy(model)
    if dummy:
        found.append(dummy)
    yield from [kit for kit in found if main in kit]
    yield from [kit for kit in found if main not in kit]


def _text(names: set[str], config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    ids = torch.randint(4, 90, IDS, generator=generator)
    decoded = torch.randint(4, 90, (2, 6), generator=generator)
    ones = torch.ones_like(ids)
    if "input_ids" not in names:
        return
    if "bbox" in names:
        boxes = torch.randint(0, 50, (*IDS, 4), generator=generator).sort(-1)[0]
        yield {"input_ids": ids, "bbox": boxes}
        yield {"input_ids": ids, "bbox": boxes, "decoder_input_ids": decoded}
        yield {"input_ids": ids, "bbox": boxes.float() / 100, "decoder_input_ids": decoded, "attention_mask": ones}
        yield {"input_ids": ids, "bbox": boxes, "attention_mask": ones, "image": torch.rand(2, 3, 224, 224)}
    if "visual_feats" in names:
        size, place = number(config, "visual_feat_dim", default=64), number(config, "visual_pos_dim", default=4)
        features, places = torch.randn(2, 5, size, generator=generator), torch.rand(2, 5, place, generator=generator)
        yield {"input_ids": ids, "visual_feats": features, "visual_pos": places}
    if "decoder_input_ids" in names:
        yield {"input_ids": ids, "decoder_input_ids": decoded}
        yield {"input_ids": ids, "decoder_input_ids": decoded, "attention_mask": ones}
    yield {"input_ids": ids}
    yield {"input_ids": ids, "attention_mask": ones}
    yield {"input_ids": ids, "attention_mask": ones, "position_ids": torch.arange(IDS[1]).expand(*IDS)}
    yield {
        "input_ids": torch.randint(
            4, 90, (2, 9, number(config, "num_codebooks", "num_vq", default=4)), generator=generator
        )
    }
    yield {
        "input_ids": torch.randint(
            4, 30, (2, number(config, "num_codebooks", "num_vq", default=4), 9), generator=generator
        )
    }
    size = number(config, "num_codebooks", default=4)
    yield {"input_ids": torch.randint(4, 30, (2 * size, 9), generator=generator)}


def _images(names: set[str], config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    channels = number(config, "num_channels", "in_channels", "in_chans", default=3)
    patch = number(config, "patch_size", default=14)
    ids = torch.randint(4, 90, (1, 9), generator=generator)
    for size in dict.fromkeys((number(config, "image_size", "input_size", default=64), 64, 128, 224, 4 * patch)):
        pixels = torch.randn((1, channels, size, size), generator=generator)
        frames = number(config, "num_frames", "frames_per_clip", "tubelet_size", default=4)
        clip = pixels[:, None].repeat(1, frames, 1, 1, 1)
        if "pixel_values" in names:
            yield {"pixel_values": pixels}
            if "decoder_input_ids" in names:
                yield {"pixel_values": pixels, "decoder_input_ids": ids[:, :6]}
            if "input_ids" in names:
                yield {"pixel_values": pixels, "input_ids": ids}
                yield {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if "qformer_input_ids" in names:
                yield {"pixel_values": pixels, "input_ids": ids, "qformer_input_ids": ids}
            if "task_inputs" in names:
                yield {"pixel_values": pixels, "task_inputs": ids}
            if "noise" in names:
                yield {"pixel_values": pixels, "noise": torch.rand(1, (size // patch) ** 2, generator=generator)}
            if "bool_masked_pos" in names:
                masked = torch.zeros(1, frames * (size // patch) ** 2 // 2, dtype=torch.bool)
                yield {"pixel_values": clip, "bool_masked_pos": masked}
            if "prompt_pixel_values" in names:
                masks = torch.randn((1, channels, size, size), generator=generator)
                yield {"pixel_values": pixels, "prompt_pixel_values": pixels.flip(-1), "prompt_masks": masks}
            yield {"pixel_values": clip}
            if "input_ids" in names:
                yield {"pixel_values": clip, "input_ids": ids}
            yield from _patches(names, pixels, channels, patch)
        for name in ("pixel_values_videos", "pixel_values_video", "pixel_values_images"):
            if name in names:
                yield {name: clip}
                yield {name: pixels}
                if "input_ids" in names:
                    yield {name: clip, "input_ids": ids}
        for name in ("flattened_patches",):
            if name in names:
                width = 2 + channels * patch * patch
                kit = {name: torch.cat([torch.ones(1, 8, 2), torch.randn(1, 8, width - 2, generator=generator)], -1)}
                yield kit
                yield kit | {"decoder_input_ids": ids[:, :6]}
    yield from _grids(names, config, channels, patch, generator)


def _patches(names: set[str], pixels: torch.Tensor, channels: int, patch: int) -> Iterator[dict[str, Any]]:
    """Yield images cut into patches, as SigLIP 2 and its relatives take them."""
    side = 4
    flat = torch.randn((1, side * side, channels * patch * patch), generator=torch.Generator().manual_seed(1))
    for shapes in ("spatial_shapes", "image_sizes", "image_grid_hws"):
        if shapes in names:
            kit: dict[str, Any] = {"pixel_values": flat, shapes: torch.tensor([[side, side]])}
            for mask in ("pixel_attention_mask", "attention_mask"):
                if mask in names:
                    kit[mask] = torch.ones(1, side * side, dtype=torch.long)
            yield kit
            yield {"pixel_values": pixels, shapes: torch.tensor([list(pixels.shape[-2:])])}
    if "pixel_position_ids" in names:
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(1, -1, 2)
        yield {"pixel_values": flat, "pixel_position_ids": grid}
    for name in ("tgt_sizes", "target_sizes"):
        if name in names:
            strip = torch.randn((1, channels, patch, patch * side * side), generator=torch.Generator().manual_seed(1))
            kit = {"pixel_values": strip, name: torch.tensor([[side, side]])}
            if "patch_attention_mask" in names:
                kit["patch_attention_mask"] = torch.ones(1, 1, side * side, dtype=torch.bool)
            yield kit


def _grids(
    names: set[str], config: Any, channels: int, patch: int, generator: torch.Generator
) -> Iterator[dict[str, Any]]:
    """Yield flattened patches with a grid, as Qwen-VL and its relatives take them."""
    deep = number(config, "temporal_patch_size", default=2)
    for grid in ("grid_thw", "image_grid_thw", "grid_hw", "grid_hws", "image_grid_hws"):
        if grid not in names:
            continue
        sizes = torch.tensor([[1, 4, 4]]) if "thw" in grid else torch.tensor([[4, 4]])
        for main in ("hidden_states", "pixel_values"):
            if main in names:
                for width in (channels * deep * patch * patch, channels * patch * patch):
                    kit: dict[str, Any] = {main: torch.randn((16, width), generator=generator), grid: sizes}
                    if "merge_sizes" in names:
                        kit["merge_sizes"] = torch.tensor([1])
                    yield kit
                yield {main: torch.randn((16, channels, patch, patch), generator=generator), grid: sizes}
                yield {main: torch.randn((1, 16, channels, patch, patch), generator=generator), grid: sizes}


def _sound(names: set[str], config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    decoded = torch.randint(4, 90, (1, 6), generator=generator)
    ids = torch.randint(4, 90, (1, 9), generator=generator)
    bins = number(
        config, "num_mel_bins", "n_mels", "feature_size", "input_feat_per_channel", "input_dim", "mel_dim",
        "feature_projection_input_dim", default=16,
    )  # fmt: skip
    if "input_values" in names:
        for length in (4000, 16000):
            wave = torch.randn((1, length), generator=generator)
            yield {"input_values": wave}
            yield {"input_values": wave[:, None]}
            if "decoder_input_ids" in names:
                yield {"input_values": wave, "decoder_input_ids": decoded}
            if "padding_mask" in names:
                yield {"input_values": wave[:, None], "padding_mask": torch.ones(1, 1, length)}
            if "input_ids" in names:
                yield {"input_values": wave, "input_ids": ids}
                yield {"input_values": wave[:, None], "input_ids": ids}
        yield {"input_values": torch.randn((1, number(config, "max_length", default=1024), bins), generator=generator)}
        yield {"input_values": torch.randn((1, 16, bins), generator=generator)}
    if "input_features" in names:
        long = 2 * number(config, "max_source_positions", default=64)
        windows = 2 * number(config, "n_window", default=50)
        shapes = [
            (1, bins, long),
            (1, long, bins),
            (1, 64, bins),
            (1, bins, 64),
            (1, 64, 80),
            (1, 64, 160),
            (1, 80, 64),
        ]
        shapes += [(1, 128, long), (1, 80, long), (1, long, 128), (1, bins, 3000), (1, 1, 1001, 64)]
        for shape in shapes:
            sound = {"input_features": torch.randn(shape, generator=generator)}
            steps = shape[1] if shape[-1] in (bins, 80, 160) else shape[-1]
            if "decoder_input_ids" in names:
                yield sound | {"decoder_input_ids": decoded}
            yield sound
            for mask in ("attention_mask", "input_features_mask", "feature_attention_mask"):
                if mask in names:
                    yield sound | {mask: torch.ones(1, steps, dtype=torch.long)}
                    yield sound | {mask: torch.ones(1, steps, dtype=torch.bool)}
            if "input_ids" in names:
                yield sound | {"input_ids": ids}
        for lengths in ("feature_lens", "audio_feature_lengths", "feature_lengths"):
            if lengths in names:
                yield {
                    "input_features": torch.randn((bins, windows), generator=generator),
                    lengths: torch.tensor([windows]),
                    "aftercnn_lens": torch.tensor([windows // 2]),
                }
                yield {
                    "input_features": torch.randn((bins, windows), generator=generator),
                    lengths: torch.tensor([windows]),
                }
    for name in ("audio_values", "waveform", "input_waveform", "spectrogram", "audio"):
        if name in names:
            yield {name: torch.randn((1, 1, 8000), generator=generator)}
            yield {name: torch.randn((1, 8000), generator=generator)}
            yield {name: torch.randn((1, 32, bins), generator=generator)}


def _series(names: set[str], config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    if "past_values" in names:
        length = number(config, "context_length", default=32)
        yield from _dated(names, config, length, generator)
        channels = number(config, "num_input_channels", "input_size", default=1)
        for shape in ((2, length, channels), (2, length)):
            yield {"past_values": torch.randn(shape, generator=generator)}
        yield {"past_values": [torch.randn(length, generator=generator) for _ in range(2)]}
        kit: dict[str, Any] = {"past_values": torch.randn((2, length), generator=generator)}
        kit |= {"past_values_padding": torch.zeros(2, length), "freq": torch.zeros(2, 1, dtype=torch.long)}
        yield kit
        yield {k: v for k, v in kit.items() if k != "freq"}
    if "states" in names and "actions" in names:
        yield {
            "states": torch.randn((1, 5, config.state_dim), generator=generator),
            "actions": torch.randn((1, 5, config.act_dim), generator=generator),
            "rewards": torch.randn((1, 5, 1), generator=generator),
            "returns_to_go": torch.randn((1, 5, 1), generator=generator),
            "timesteps": torch.arange(5)[None],
            "attention_mask": torch.ones(1, 5),
        }


def _dated(names: set[str], config: Any, length: int, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    if "past_time_features" not in names:
        return
    ahead = getattr(config, "prediction_length", None) or 8
    whole = length + max(getattr(config, "lags_sequence", None) or [7])
    features = max(1, number(config, "num_time_features", default=0))
    yield {
        "past_values": torch.randn((2, whole), generator=generator),
        "past_time_features": torch.randn((2, whole, features), generator=generator),
        "past_observed_mask": torch.ones(2, whole),
        "future_values": torch.randn((2, ahead), generator=generator),
        "future_time_features": torch.randn((2, ahead, features), generator=generator),
    }


def _embedded(names: set[str], config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Yield hidden states where tokens would be, for parts of larger models."""
    width = number(config, "hidden_size", "d_model", "n_embd", "embed_dim", "hidden_dim", default=64)
    states = torch.randn((2, 9, width), generator=generator)
    if "inputs" in names:
        yield {"inputs": torch.randint(4, 90, IDS, generator=generator)}
        yield {"inputs": states}
    if "inputs_embeds" in names:
        yield {"inputs_embeds": states}
        if "decoder_inputs_embeds" in names:
            yield {"inputs_embeds": states, "decoder_inputs_embeds": states[:, :6]}
    if "query_embeds" in names:
        yield {"query_embeds": states, "encoder_hidden_states": states}
    if "hidden_states" in names:
        yield {"hidden_states": states}
    if "encoder_hidden_states" in names and "input_ids" in names:
        yield {"input_ids": torch.randint(4, 90, IDS, generator=generator), "encoder_hidden_states": states}


def _dummy(model: nn.Module) -> dict[str, Any] | None:
    try:
        made = model.dummy_inputs
    except Exception:
        return None
    return dict(made) if isinstance(made, dict) else None


def number(config: Any, *names: str, default: int) -> int:
    """Return the first whole number that the configuration, or one inside it, holds under one of ``names``."""
    parts = ("vision_config", "audio_config", "encoder_config", "text_config", "backbone_config", "encoder")
    for part in [config, *(getattr(config, name, None) for name in parts)]:
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, list | tuple) and value:
                value = value[0]
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return default
