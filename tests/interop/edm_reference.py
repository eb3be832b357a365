"""The published structure and names of EDM's networks, written for these tests from their description."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import nn


class Conv(nn.Module):
    """A convolution of ``kernel`` (0: none) after a filter that doubles or halves the resolution."""

    def __init__(self, c, out, kernel, zoom="", taps=(1, 1), fused=False):
        super().__init__()
        self.zoom, self.kernel, self.fused, self.pad = zoom, kernel, fused, (len(taps) - 1) // 2
        self.weight = nn.Parameter(torch.randn(out, c, kernel, kernel) / math.sqrt(c * kernel**2)) if kernel else None
        self.bias = nn.Parameter(torch.randn(out)) if kernel else None
        f = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", (f[:, None] * f / f.sum() ** 2)[None, None] if zoom else None)

    def filtered(self, x, pad):
        f = self.resample_filter.repeat(x.shape[1], 1, 1, 1)
        if self.zoom == "down":
            return nnf.conv2d(x, f, groups=x.shape[1], stride=2, padding=pad)
        return nnf.conv_transpose2d(x, 4 * f, groups=x.shape[1], stride=2, padding=pad)

    def forward(self, x):
        if self.fused:
            x = nnf.conv2d(x, self.weight, padding=self.kernel // 2 + self.pad)
            return self.filtered(x, 0) + self.bias[:, None, None]
        x = self.filtered(x, self.pad) if self.zoom else x
        return nnf.conv2d(x, self.weight, self.bias, padding=self.kernel // 2) if self.kernel else x


def norm(c, eps):
    return nn.GroupNorm(min(32, c // 4), c, eps)


class Block(nn.Module):
    def __init__(self, c, out, emb, song, taps, zoom="", attends=False):
        super().__init__()
        eps = 1e-6 if song else 1e-5
        self.song, self.c = song, c
        self.heads = 0 if not attends else 1 if song else out // 64
        self.norm0, self.conv0 = norm(c, eps), Conv(c, out, 3, zoom, taps)
        self.affine = nn.Linear(emb, out if song else 2 * out)
        self.norm1, self.conv1 = norm(out, eps), Conv(out, out, 3)
        self.skip = Conv(c, out, 1 if song or c != out else 0, zoom, taps) if c != out or zoom else None
        if attends:
            self.norm2, self.qkv, self.proj = norm(out, eps), Conv(out, 3 * out, 1), Conv(out, out, 1)

    def forward(self, x, emb):
        scale = math.sqrt(0.5) if self.song else 1.0
        h, e = self.conv0(nnf.silu(self.norm0(x))), self.affine(emb)[:, :, None, None]
        if self.song:
            h = nnf.silu(self.norm1(h + e))
        else:
            a, b = e.chunk(2, 1)
            h = nnf.silu(self.norm1(h) * (a + 1) + b)
        x = ((x if self.skip is None else self.skip(x)) + self.conv1(h)) * scale
        if not self.heads:
            return x
        b, c, height, width = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(b * self.heads, c // self.heads, 3, -1).unbind(2)
        w = torch.einsum("bci,bcj->bij", q, k / math.sqrt(k.shape[1])).softmax(2)
        return (x + self.proj(torch.einsum("bij,bcj->bci", w, v).reshape(b, c, height, width))) * scale


class EDMNet(nn.Module):
    """``forward(x, noise_labels, class_labels)`` with one-hot labels; kinds ddpmpp, ncsnpp, adm."""

    def __init__(self, kind, side, channels, multipliers, blocks, attention_sides, num_classes=0, augment=9):
        super().__init__()
        self.kind, song = kind, kind != "adm"
        emb, self.noise = 4 * channels, 2 * channels if kind == "ncsnpp" else channels
        taps = (1, 3, 3, 1) if kind == "ncsnpp" else (1, 1)
        if kind == "ncsnpp":
            self.map_noise = nn.Module()
            self.map_noise.register_buffer("freqs", torch.randn(self.noise // 2) * 16)
        self.map_augment = nn.Linear(augment, self.noise, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(self.noise, emb), nn.Linear(emb, emb)
        if num_classes:
            self.map_label = nn.Linear(num_classes, self.noise if song else emb, bias=song)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        c, image, kept = channels if song else channels * multipliers[0], 3, []

        def block(c, out, **options):
            return Block(c, out, emb, song, taps, **options)

        for level, m in enumerate(multipliers):
            s = side >> level
            if level == 0:
                self.enc[f"{s}x{s}_conv"] = Conv(3, c, 3)
            else:
                self.enc[f"{s}x{s}_down"] = block(c, c, zoom="down")
                if kind == "ncsnpp":
                    self.enc[f"{s}x{s}_aux_residual"] = Conv(image, c, 3, "down", taps, fused=True)
                    image = c
            kept.append(c)
            for i in range(blocks):
                self.enc[f"{s}x{s}_block{i}"] = block(c, channels * m, attends=s in attention_sides)
                c = channels * m
                kept.append(c)
        for level, m in reversed(list(enumerate(multipliers))):
            s = side >> level
            if level == len(multipliers) - 1:
                self.dec[f"{s}x{s}_in0"], self.dec[f"{s}x{s}_in1"] = block(c, c, attends=True), block(c, c)
            else:
                self.dec[f"{s}x{s}_up"] = block(c, c, zoom="up")
            for i in range(blocks + 1):
                attends = s in attention_sides and (not song or i == blocks)
                self.dec[f"{s}x{s}_block{i}"] = block(c + kept.pop(), channels * m, attends=attends)
                c = channels * m
        self.end(side, c)

    def end(self, side, c):
        if self.kind == "adm":
            self.out_norm, self.out_conv = norm(c, 1e-5), Conv(c, 3, 3)
            return
        self.dec[f"{side}x{side}_aux_norm"] = norm(c, 1e-6)
        self.dec[f"{side}x{side}_aux_conv"] = Conv(c, 3, 3)

    def embedded(self, labels):
        half = self.noise // 2
        if self.kind == "ncsnpp":
            angles = 2 * math.pi * labels[:, None] * self.map_noise.freqs
        else:
            last = half - (self.kind == "ddpmpp")
            angles = labels[:, None] * (1 / 10_000) ** (torch.arange(half) / last)
        parts = [angles.cos(), angles.sin()]
        return torch.cat(parts if self.kind == "adm" else parts[::-1], 1)

    def condition(self, labels, classes):
        e = self.embedded(labels)
        if self.kind == "adm":
            e = self.map_layer1(nnf.silu(self.map_layer0(e)))
            return nnf.silu(e if classes is None else e + self.map_label(classes))
        if classes is not None:
            e = e + self.map_label(classes * math.sqrt(classes.shape[1]))
        return nnf.silu(self.map_layer1(nnf.silu(self.map_layer0(e))))

    def forward(self, x, labels, classes=None):
        emb, image, kept = self.condition(labels, classes), x, []
        for name, layer in self.enc.items():
            if "aux" in name:
                x = image = kept[-1] = (x + layer(image)) * math.sqrt(0.5)
                continue
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            kept.append(x)
        for name, layer in self.dec.items():
            if "aux_norm" in name:
                x = nnf.silu(layer(x))
            elif "aux_conv" in name:
                x = layer(x)
            else:
                x = layer(torch.cat([x, kept.pop()], 1) if layer.c != x.shape[1] else x, emb)
        return x if self.kind != "adm" else self.out_conv(nnf.silu(self.out_norm(x)))
