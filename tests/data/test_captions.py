import json
from types import SimpleNamespace

import pytest
import torch

from cm_lightning import CaptionedFolder, CaptionedShards
from cm_lightning.errors import ConfigError, DataError
from cm_lightning.modules.batch import images_and_labels
from tests.data.captioned import caption, shades, write_csv, write_images, write_jsonl, write_shard, write_texts


@pytest.mark.parametrize("write", [write_texts, write_jsonl, write_csv])
def test_a_folder_by_any_convention(tmp_path, write):
    write(tmp_path, range(20))
    data = CaptionedFolder(str(tmp_path), size=8, batch_size=6)
    images, captions = next(iter(data.train_dataloader()))
    assert images.shape == (6, *data.image_shape) == (6, 3, 8, 8)
    assert images.dtype == torch.float32
    assert len(captions) == 6
    assert shades(data.in_order("val")) == [9, 19]
    assert shades(data.in_order("train")) == [*range(9), *range(10, 19)]


@pytest.mark.parametrize("above", [False, True])
def test_ready_splits_with_their_own_tables_or_one_above(tmp_path, above):
    for split, numbers in (("train", range(5)), ("val", range(5, 8))):
        (write_images if above else write_jsonl)(tmp_path / split, numbers)
    if above:
        names = [f"{'val' if i > 4 else 'train'}/{i:03d}.png" for i in range(8)]
        rows = [json.dumps({"file_name": name, "text": caption(i)}) for i, name in enumerate(names)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    data = CaptionedFolder(str(tmp_path), size=(8, 8))
    assert shades(data.in_order("train")) == list(range(5))
    assert shades(data.in_order("val")) == [5, 6, 7]


def test_a_row_goes_before_a_text_file_which_fills_the_gaps(tmp_path):
    write_jsonl(tmp_path, [1, 2], column="prompt")
    write_images(tmp_path, [3])
    (tmp_path / "002.txt").write_text("not this")
    (tmp_path / "003.caption").write_text(f"\n {caption(3)} \nnot this")
    rows = (tmp_path / "metadata.jsonl").read_text()
    (tmp_path / "metadata.jsonl").write_text(rows + json.dumps({"file_name": "gone.png", "prompt": "passed over"}))
    data = CaptionedFolder(str(tmp_path), size=8, caption_column="prompt")
    assert shades([*data.in_order("train"), *data.in_order("val")]) == [1, 2, 3]


def test_mirror_images_keep_their_captions(tmp_path):
    write_texts(tmp_path, range(20))
    data = CaptionedFolder(str(tmp_path), size=8, flip=True, batch_size=36)
    assert sorted(shades(data.train_dataloader())) == sorted([*range(9), *range(10, 19)] * 2)


def test_folder_errors_name_file_and_remedy(tmp_path):
    write_jsonl(tmp_path, range(3), column="prompt")
    table, rows = tmp_path / "metadata.jsonl", (tmp_path / "metadata.jsonl").read_text()

    def refused(match):
        with pytest.raises(DataError, match=match) as error:
            CaptionedFolder(str(tmp_path)).split("train")
        assert "\n" not in str(error.value)

    refused(r"row 1 of .*metadata.jsonl lacks the text 'text'.*caption_column.*\(file_name, prompt, more\)")
    table.write_text(rows.replace("prompt", "text").replace("\n", "\n{cut", 1))
    refused(r"line 2 of .*metadata.jsonl is not a JSON object")
    table.write_text("[1]")
    refused(r"line 1 of .*metadata.jsonl is not a JSON object")
    table.write_text('{"file_name": "000.jpg", "text": null}')
    refused("lacks the text 'text'")
    table.unlink()
    refused(r"000.jpg does not have a caption: write 000.txt beside it")
    (tmp_path / "000.txt").write_bytes(b"\xff\xfe")
    refused(r"000.txt is not UTF-8 text")
    (tmp_path / "metadata.csv").write_text('file_name,text\n000.jpg,"' + "never closed" * 20_000)
    refused(r"metadata.csv is not a CSV table")
    (tmp_path / "metadata.csv").write_text("file_name,text\n000.jpg\n")
    refused(r"row 1 of .*metadata.csv lacks the text 'text'")


def loader(data, **state):
    """The loader of one rank of a run."""
    defaults = {"world_size": 1, "global_rank": 0, "global_step": 0, "accumulate_grad_batches": 1}
    limits = {"overfit_batches": 0.0, "limit_train_batches": 1.0}
    data.trainer = SimpleNamespace(lightning_module=None, **defaults | limits | state)
    return data.train_dataloader()


@pytest.mark.parametrize(("kind", "write"), [(CaptionedFolder, write_texts), (CaptionedShards, write_shard)])
def test_resumes_exactly_and_ranks_share_the_images(tmp_path, kind, write):
    write(tmp_path / "0.tar", range(20 if write is write_texts else 19))  # 18 to train on
    data = kind(str(tmp_path), size=8, batch_size=6)
    whole = shades(loader(data))
    assert len(set(whole)) == len(whole) == 18
    again = kind(str(tmp_path), size=8, batch_size=6, num_workers=2)
    assert shades(loader(again, global_step=1))[:-6] == whole[6:]
    ranks = [shades(loader(data, world_size=2, global_rank=rank)) for rank in (0, 1)]
    assert not set(ranks[0]) & set(ranks[1])
    assert [i for k in range(0, len(ranks[0]), 3) for rank in ranks for i in rank[k : k + 3]] == whole


def test_a_network_with_classes_says_that_captions_are_no_labels():
    batch = [torch.zeros(2, 1, 8, 8), ("a", "b")]
    assert images_and_labels(batch, (1, 8, 8), 0, first=True)[1] is None
    with pytest.raises(ConfigError, match="does not have labels"):
        images_and_labels(batch, (1, 8, 8), 10, first=True)
