"""The published structure and names of OpenAI's UNetModel, written for these tests from its description."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import nn


def zoomed(x, zoom):
    if zoom == "up":
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return nnf.avg_pool2d(x, 2) if zoom == "down" else x


class Res(nn.Module):
    def __init__(self, c, out, emb, scale_shift, zoom=""):
        super().__init__()
        self.zoom, self.scale_shift = zoom, scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, (2 if scale_shift else 1) * out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if c == out else nn.Conv2d(c, out, 1)

    def forward(self, x, emb):
        h = self.in_layers[2](zoomed(self.in_layers[1](self.in_layers[0](x)), self.zoom))
        e = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            half = e.shape[1] // 2
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + e[:, :half]) + e[:, half:])
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(zoomed(x, self.zoom)) + h


class Attention(nn.Module):
    def __init__(self, c, width=64):
        super().__init__()
        self.heads = c // width
        self.norm, self.qkv, self.proj_out = nn.GroupNorm(32, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x, emb):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        weight = torch.softmax(torch.einsum("bndi,bndj->bnij", q, k) / math.sqrt(c // self.heads), dim=-1)
        return x + self.proj_out(torch.einsum("bnij,bndj->bndi", weight, v).reshape(b, c, h, w))


class OpenAIUNet(nn.Module):
    """``forward(x, timesteps, y)``; timesteps are 250 ln sigma."""

    def __init__(self, channels, multipliers, blocks, attention_levels, num_classes=0, scale_shift=True):
        super().__init__()
        emb, c = 4 * channels, channels * multipliers[0]
        self.channels = channels
        self.time_embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if num_classes:
            self.label_emb = nn.Embedding(num_classes, emb)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, c, 3, padding=1)])])
        kept = [c]
        for level, m in enumerate(multipliers):
            for _ in range(blocks):
                stage = [Res(c, channels * m, emb, scale_shift)]
                c = channels * m
                if level in attention_levels:
                    stage.append(Attention(c))
                self.input_blocks.append(nn.ModuleList(stage))
                kept.append(c)
            if level + 1 < len(multipliers):
                self.input_blocks.append(nn.ModuleList([Res(c, c, emb, scale_shift, "down")]))
                kept.append(c)
        self.middle_block = nn.ModuleList([Res(c, c, emb, scale_shift), Attention(c), Res(c, c, emb, scale_shift)])
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(multipliers))):
            for i in range(blocks + 1):
                stage = [Res(c + kept.pop(), channels * m, emb, scale_shift)]
                c = channels * m
                if level in attention_levels:
                    stage.append(Attention(c))
                if level and i == blocks:
                    stage.append(Res(c, c, emb, scale_shift, "up"))
                self.output_blocks.append(nn.ModuleList(stage))
        self.out = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, 3, 3, padding=1))

    def forward(self, x, timesteps, y=None):
        half = self.channels // 2
        angles = timesteps[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))
        if y is not None:
            emb = emb + self.label_emb(y)
        kept, h = [], self.input_blocks[0][0](x)
        kept.append(h)
        for stage in self.input_blocks[1:]:
            for layer in stage:
                h = layer(h, emb)
            kept.append(h)
        for layer in self.middle_block:
            h = layer(h, emb)
        for stage in self.output_blocks:
            h = torch.cat([h, kept.pop()], dim=1)
            for layer in stage:
                h = layer(h, emb)
        return self.out(h)
