"""A tiny CLIP with the layers and the names of open_clip's checkpoints, written from the description of the model.

It is the oracle of the conversion to transformers: the same weights must give the same embeddings.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = (("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class _Blocks(nn.Module):
    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class _Visual(nn.Module):
    def __init__(self, width: int, heads: int, size: int, patch: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _Blocks(width, heads, 2)
        self.proj = nn.Parameter(torch.empty(width, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.ln_pre(torch.cat([start, patches], 1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class TinyOpenClip(nn.Module):
    """Two towers with heads of 64 channels."""

    def __init__(self, *, text_width: int = 64, width: int = 128, size: int = 224) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token_embedding = nn.Embedding(49_408, text_width)
        self.positional_embedding = nn.Parameter(torch.empty(77, text_width))
        self.transformer = _Blocks(text_width, text_width // 64, 2)
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.empty(text_width, 16))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.visual = _Visual(width, width // 64, size, 14, 16)
        for name, weight in self.named_parameters():
            if weight.dim() > 0:
                nn.init.normal_(weight, mean=1.0 if "ln_" in name and name.endswith("weight") else 0.0, std=0.15)

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Return embeddings of norm 1."""
        return nn.functional.normalize(self.visual(pixels), dim=1)

    @torch.no_grad()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Return embeddings of norm 1 of tokens `[N, L]`; the end of a text is its largest token."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        mask = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        ends = x[torch.arange(len(x)), tokens.argmax(1)]
        return nn.functional.normalize(ends @ self.text_projection, dim=1)

    def write(self, file: Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """Write a checkpoint as a training of open_clip leaves it."""
        state = {name: value.to(dtype) for name, value in self.state_dict().items()}
        if file.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, file)
        else:
            torch.save({"epoch": 3, "name": "tiny", "state_dict": state}, file)
        return file
