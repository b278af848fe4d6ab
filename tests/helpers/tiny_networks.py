"""Tiny random feature networks of the real classes of transformers, saved as they are published."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from condistill.teachers.clip_tokenizer import VOCABULARY_NAME, write_vocabulary
from condistill.teachers.single_file import SHIPPED

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def write_dinov2(folder: Path, *, registers: bool = False, seed: int = 0) -> Path:
    """Write a Dinov2Model for 28 px; other sizes work as well."""
    import transformers

    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    return _save(getattr(transformers, f"{kind}Model"), getattr(transformers, f"{kind}Config")(**sizes), folder, seed)


def clip_config(*, width: int = 32, heads: int = 2, image_size: int = 28) -> Any:
    """Return the config of a tiny CLIP with the whole vocabulary."""
    from transformers import CLIPConfig

    tower = {**_SMALL, "hidden_size": width, "num_attention_heads": heads, "hidden_act": "gelu", "projection_dim": 16}
    text = {
        **tower,
        "vocab_size": 49_408,
        "max_position_embeddings": 77,
        "eos_token_id": 49_407,
        "bos_token_id": 49_406,
    }
    vision = {**tower, "image_size": image_size, "patch_size": 14}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


def write_clip(folder: Path, *, tokenizer: bool = True, preprocessor: bool = True, seed: int = 0) -> Path:
    """Write a CLIPModel with CLIP's own vocabulary."""
    from transformers import CLIPModel

    _save(CLIPModel, clip_config(), folder, seed)
    if tokenizer:
        write_vocabulary(SHIPPED / "clip" / VOCABULARY_NAME, folder)
        end = "<|endoftext|>"
        tokens = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
        _write(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **tokens})
    if preprocessor:
        sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "resample": 3}
        _write(folder / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor", **sizes})
    return folder


def write_siglip(folder: Path, seed: int = 0) -> Path:
    """Write a SiglipModel with a vocabulary of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

    words = ["<pad>", "<unk>", "</s>", "a", "dog", "cat", "red", "on", "grass"]
    text = {**_SMALL, "vocab_size": len(words), "max_position_embeddings": 8}
    ends = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2}
    vision = {**_SMALL, "image_size": 28, "patch_size": 14}
    _save(SiglipModel, SiglipConfig(text_config={**text, **ends}, vision_config=vision), folder, seed)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=8
    )
    fast.save_pretrained(folder)
    sizes = {"size": {"height": 28, "width": 28}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    _write(folder / "preprocessor_config.json", {"image_processor_type": "SiglipImageProcessor", **sizes})
    return folder


def image_processor(kind: str) -> Any:
    """Return the class of transformers that prepares images with Pillow; its name and place depend on the version."""
    import transformers

    name = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "bit": "BitImageProcessor"}[kind]
    try:
        return getattr(importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}"), f"{name}Pil")
    except ImportError:
        return getattr(transformers, name)


def _save(model_class: Any, config: Any, folder: Path, seed: int) -> Path:
    """Write random weights that are larger than those of a new model, so that features differ."""
    torch.manual_seed(seed)
    model = model_class(config)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3 if "embed" in name else 0.15)
    model.save_pretrained(folder)
    return folder


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")
