"""Captioned images in all the conventions; each caption gives the shade of red of its image."""

from __future__ import annotations

import csv
import io
import json
import tarfile

from PIL import Image


def encoded(shade, kind="png", size=(9, 8)):
    """An image of one shade."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(file, {"jpg": "jpeg"}.get(kind, kind))
    return file.getvalue()


def caption(shade):
    return f"red of strength {shade}"


def write_images(folder, shades, kind="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for shade in shades:
        (folder / f"{shade:03d}.{kind}").write_bytes(encoded(shade, kind, (8 + shade % 5, 8)))


def write_texts(folder, shades):
    write_images(folder, shades)
    for shade in shades:
        (folder / f"{shade:03d}.txt").write_text(caption(shade) + "\n")


def write_jsonl(folder, shades, column="text"):
    write_images(folder, shades, "jpg")
    rows = [{"file_name": f"{shade:03d}.jpg", column: caption(shade), "more": 1} for shade in shades]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def write_csv(folder, shades):
    write_images(folder / "deep", shades)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(
            [("file_name", "text"), *((f"deep/{shade:03d}.png", caption(shade)) for shade in shades)]
        )


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_shard(path, shades, kind="jpg", ending="txt", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for shade in shades:
            text = json.dumps({"caption": caption(shade)}) if ending == "json" else caption(shade)
            add(tar, f"{shade:06d}.{ending}", text.encode())
            add(tar, f"{shade:06d}.{kind}", encoded(shade, kind))
    return path


def write_shards(folder):
    """Forty samples in four shards of all kinds."""
    write_shard(folder / "000000.tar", range(10))
    write_shard(folder / "000001.tar", range(10, 20), "png", "json")
    write_shard(folder / "000002.tar", range(20, 30), "webp", format=tarfile.GNU_FORMAT)
    write_shard(folder / "000003.tar", range(30, 40), "jpeg", format=tarfile.USTAR_FORMAT)


def shades(batches):
    """The shades of the images, after a check that the captions match."""
    found = []
    for images, captions in batches:
        seen = ((images[:, 0].mean((1, 2)) + 1) * 127.5).round().int().tolist()
        told = [int(text.rpartition(" ")[2]) for text in captions]
        assert max(abs(a - b) for a, b in zip(seen, told, strict=True)) <= 3  # JPEG and WebP are not exact
        assert captions[0] == caption(told[0])
        found += told
    return found
