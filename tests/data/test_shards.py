import tarfile

import pytest

from cm_lightning import CaptionedShards
from cm_lightning.data import shards as shards_module
from cm_lightning.data.shards import find_shards, shard_index
from cm_lightning.errors import DataError
from tests.data.captioned import add, caption, encoded, shades, write_shard, write_shards


@pytest.mark.parametrize("names", ["", "*.tar", "0000{00..03}.tar", "{000000..000001}.tar", "0{00..00}0{02..03}.tar"])
def test_shards_by_folder_glob_and_ranges(tmp_path, names):
    write_shards(tmp_path)
    found = [path.name for path in find_shards(f"{tmp_path}/{names}" if names else str(tmp_path))]
    wanted = {"{000000..000001}.tar": [0, 1], "0{00..00}0{02..03}.tar": [2, 3]}.get(names, range(4))
    assert found == [f"{i:06d}.tar" for i in wanted]


def test_shards_of_any_kind_are_read_and_held_out(tmp_path):
    write_shards(tmp_path)
    data = CaptionedShards(str(tmp_path), size=8, batch_size=13, num_workers=2)
    assert shades(data.in_order("val")) == [39]
    assert sorted(shades(data.train_dataloader())) == list(range(39))
    chosen = CaptionedShards(f"{tmp_path}/00000{{0..2}}.tar", val=f"{tmp_path}/000003.tar", size=8)
    assert shades(chosen.in_order("train")) == list(range(30))
    assert shades(chosen.in_order("val")) == list(range(30, 40))
    write_shard(tmp_path / "many" / "0.tar", range(210), "png")
    assert shades(CaptionedShards(str(tmp_path / "many"), size=8).in_order("val")) == [99, 199]


def test_names_of_samples_as_webdataset_reads_them(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("./"))
        add(tar, "./._1.jpg", b"of a Mac")
        add(tar, "read.me.txt", b"no image")
        for shade, key in enumerate(["./a/1", "./b/1", "c" * 150 + "/ü"]):
            add(tar, f"{key}.PNG", encoded(shade))
            add(tar, f"{key}.json", b'{"caption": "not this"}')
            add(tar, f"{key}.cls", b"3")
            add(tar, f"{key}.txt", caption(shade).encode("utf-8-sig"))
    data = CaptionedShards(str(tmp_path), size=8)
    assert shades([*data.in_order("train"), *data.in_order("val")]) == [0, 1, 2]


def test_headers_are_read_once_while_a_shard_is_the_same(tmp_path, monkeypatch):
    write_shard(tmp_path / "0.tar", range(4))
    data = CaptionedShards(str(tmp_path), size=8, cache=str(tmp_path / "cache"))
    data.prepare_data()
    with monkeypatch.context() as patch:
        patch.setattr(shards_module.tarfile, "open", lambda *_: pytest.fail("read again"))
        assert shades(data.in_order("train")) == [0, 1, 2]
    write_shard(tmp_path / "0.tar", range(100, 105))
    assert shades(CaptionedShards(str(tmp_path), size=8).in_order("val")) == [104]


def test_shard_errors_name_shard_and_sample(tmp_path):
    path = write_shard(tmp_path / "0.tar", range(4), "png")
    whole, cache = path.read_bytes(), tmp_path / "cache"

    def refused(data, match):
        path.write_bytes(data)
        with pytest.raises(DataError, match=match) as error:
            list(CaptionedShards(str(path), size=8, cache=str(cache)).in_order("train"))
        assert "\n" not in str(error.value)

    index = shard_index(path, cache)
    image_at, _, caption_at, _, _ = index[1].tolist()
    for end in (caption_at + 3, image_at - 512, image_at - 100):  # in a file, between two, in a header
        refused(whole[:end], r"0.tar is not a complete, uncompressed tar file")
    refused(whole[: image_at - 512] + b"?" * 512 + whole[image_at:], r"0.tar is not a complete, uncompressed tar file")
    refused(b"", r"0.tar is not a complete, uncompressed tar file")
    refused(b"\x1f\x8b" + whole, r"decompress it")
    refused(whole[:image_at] + b"?" * 40 + whole[image_at + 40 :], r"000001.png in .*0.tar cannot be read as an image")
    refused(
        whole[:caption_at] + b"\xff" + whole[caption_at + 1 :],
        r"000001.png in .*0.tar does not have a caption that is te",
    )
    refused(bytes(10240), r"0.tar has 0 captioned image")
    refused(whole.replace(b"000002.txt", b"000002.doc"), r"not whole|is not a complete")  # the header's sum tells


def test_samples_without_caption_are_named(tmp_path):
    for name, captions in (
        ("none.tar", {}),
        ("null.tar", {"7.json": b'{"caption": null}'}),
        ("no.tar", {"7.json": b"[]"}),
    ):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, data in {"6.png": encoded(6), "6.txt": b"six", "7.png": encoded(7), **captions}.items():
                add(tar, member, data)
    with pytest.raises(DataError, match=r"sample 7 of .*none.tar does not have a caption: add 7.txt or 7.json"):
        CaptionedShards(str(tmp_path / "none.tar")).prepare_data()
    for name in ("null", "no"):
        with pytest.raises(DataError, match=rf"7.png in .*{name}.tar does not have a caption that is text"):
            CaptionedShards(str(tmp_path / f"{name}.tar"), size=8).split("val")[0]


def test_shard_options_are_checked(tmp_path):
    for names in (tmp_path, tmp_path / "*.tar", tmp_path / "{0..1}.tar"):
        with pytest.raises(DataError, match=r"shard not found: .*--data.shards"):
            CaptionedShards(str(names)).split("train")
    path = write_shard(tmp_path / "0.tar", range(2))
    with pytest.warns(UserWarning, match="cannot be written .* set the option cache"):
        CaptionedShards(str(path), cache=str(path)).prepare_data()
