"""The command edit: what it writes, prints and refuses, for models of several origins."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.unet import UNet
from cm_lightning.commands.edit import main as edit
from cm_lightning.commands.sample import main as sample
from cm_lightning.core.stages import Stage
from cm_lightning.errors import CmError
from cm_lightning.export.folder import write_export
from cm_lightning.modules.adversarial import AdversarialDistillation
from cm_lightning.modules.distribution_matching import DistributionMatchingDistillation
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.training import ConsistencyTraining
from tests.interop.test_edm import reference as edm
from tests.interop.test_openai import SIZES
from tests.interop.test_openai import reference as openai

KINDS = {
    "two": MeanFlow,
    "stages": partial(AdversarialDistillation, teacher="none", stages=[Stage(4, 2), Stage(2, 1, "unconditional")]),
    "matching": partial(DistributionMatchingDistillation, teacher="none", levels=[80.0, 6.0, 1.5]),
    "single": partial(DistributionMatchingDistillation, teacher="none"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models of 8 x 8 pixels, grey and with three classes ("grey", "two"), colour without classes, and images."""
    root = tmp_path_factory.mktemp("edit")
    torch.manual_seed(0)
    nets = {
        "grey": UNet(1, 8, (1,), 1, (), num_classes=3, patch=4),
        "colour": UNet(3, 8, (1,), 1, (), patch=4),
        "two": UNet(1, 8, (1,), 1, (), num_classes=3, patch=4, noise_embedding=TwoTimesEmbedding(8)),
        "stages": UNet(1, 8, (1,), 1, (), num_classes=3, patch=4),
        "matching": UNet(1, 8, (1,), 1, (), patch=4),
        "single": UNet(1, 8, (1,), 1, (), patch=4),
    }
    for name, net in nets.items():
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.2)
        shape = (3 if name == "colour" else 1, 8, 8)
        kind = KINDS.get(name, ConsistencyTraining)
        dropout = {"label_dropout": 0.1} if name == "grey" else {}
        (root / name).mkdir()
        write_export(kind(net, shape, **dropout), root / name, 0, "raw")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "rgb.png")
    Image.fromarray(pixels[..., 0]).save(root / "a.png")
    Image.fromarray(255 - pixels[..., 0]).save(root / "b.png")
    Image.fromarray(pixels[:4, :, 0]).save(root / "half.png")
    Image.fromarray(pixels[:4, :4, 0]).save(root / "small.png")
    Image.fromarray(pixels[:4, :4]).save(root / "small_rgb.png")
    Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8)).save(root / "large.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(root / "mask.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "black.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(root / "white.png")
    (root / "broken.png").write_bytes(b"x")
    return root


@pytest.fixture(autouse=True)
def in_that_folder(files, monkeypatch):
    monkeypatch.chdir(files)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def drawn(line, tmp_path, capsys):
    """The results (N, H, W, C) and what was printed."""
    edit([*line.split(), f"--output={tmp_path / 'x.npz'}"])
    return np.load(tmp_path / "x.npz")["images"].astype(int), capsys.readouterr().out


GREY, FEW = "--ckpt_path=grey", "--steps=2"


@pytest.mark.parametrize("model", ["grey", "two", "stages", "matching"])
def test_inpainting_keeps_what_is_black_in_the_mask(model, tmp_path, capsys):
    line = f"inpaint --ckpt_path={model} --image=a.png --mask=mask.png {FEW} --num_samples=3"
    images, told = drawn(line, tmp_path, capsys)
    assert images.shape == (3, 8, 8, 1)
    assert (images[:, 4:, :, 0] == pixels("a.png")[4:, :, 0]).all()
    assert (images[:, :4, :, 0].std(0) > 0).any()
    assert "3 results: " in told
    assert "evaluations of the network for each: 2\n" in told


def test_outpainting_places_the_image(tmp_path, capsys):
    for at, rows in (("", slice(2, 6)), ("--at=4,0", slice(4, 8)), ("--at=0,0", slice(0, 4))):
        images, _ = drawn(f"outpaint {GREY} --image=half.png {FEW} {at}", tmp_path, capsys)
        assert images.shape == (10, 8, 8, 1)
        assert (images[:, rows, :, 0] == pixels("half.png")[..., 0]).all()


@pytest.mark.parametrize("image", ["rgb.png", "a.png"])
def test_colourising_keeps_the_brightness(image, tmp_path, capsys):
    images, _ = drawn(f"colourise --ckpt_path=colour --image={image} {FEW}", tmp_path, capsys)
    weights = np.array([0.2989, 0.5870, 0.1140]) / 0.9999
    assert np.abs(images @ weights - pixels(image) @ weights).max() <= 0.51  # rounding to 8 bits
    assert images.std(-1).max() > 5


@pytest.mark.parametrize(("given", "factor"), [("small.png", ""), ("small.png", "--factor=2"), ("a.png", "--factor=2")])
def test_super_resolution_keeps_the_means(given, factor, tmp_path, capsys):
    images, _ = drawn(f"super-resolution {GREY} --image={given} {factor} {FEW}", tmp_path, capsys)
    means = images[..., 0].reshape(10, 4, 2, 4, 2).mean((2, 4))
    expected = pixels(given)[..., 0]
    expected = expected.reshape(4, 2, 4, 2).mean((1, 3)) if expected.shape == (8, 8) else expected
    assert np.abs(means - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("line", "n", "evaluations"),
    [
        (f"denoise {GREY} --image=a.png --sigma=0.5", 1, 1),
        (f"denoise {GREY} --image=a.png --sigma=0.5 --labels=0,2", 2, 1),
        (f"denoise {GREY} --image=a.png --sigma=0.5 --guidance=1 --labels=0", 1, 2),
        ("denoise --ckpt_path=two --image=a.png --sigma=0.5", 1, 1),
        (f"stroke {GREY} --image=large.png --resize --num_samples=4", 4, 2),
        ("stroke --ckpt_path=two --image=a.png --num_samples=4", 4, 2),
        ("stroke --ckpt_path=colour --image=rgb.png --sigmas=3,2,1", 10, 3),
        (f"variations {GREY} --image=a.png --sigmas=2", 10, 1),
        (f"variations {GREY} --seed=3 --amount=0.2", 10, 1),
        (f"variations {GREY} {FEW}", 10, 2),
        (f"interpolate {GREY} --image=a.png --image=b.png", 10, 2),
        (f"interpolate {GREY} --seeds=0,1,2 --num_samples=7 {FEW}", 7, 2),
        ("interpolate --ckpt_path=two --image=a.png --image=b.png --labels=1", 10, 2),
        ("stroke --ckpt_path=stages --image=a.png", 10, 1),  # the nearest of its two levels
        ("stroke --ckpt_path=matching --image=a.png", 10, 2),
        ("inpaint --ckpt_path=matching --image=a.png --mask=mask.png", 10, 3),
        ("denoise --ckpt_path=matching --image=a.png --sigma=3", 1, 1),
        ("variations --ckpt_path=single --amount=0.5", 10, 1),
        ("interpolate --ckpt_path=single --seeds=0,1", 10, 1),
    ],
)
def test_the_number_of_results_and_evaluations(line, n, evaluations, tmp_path, capsys):
    images, told = drawn(line, tmp_path, capsys)
    assert len(images) == n
    assert f"evaluations of the network for each: {evaluations}\n" in told


def test_without_labels_no_class_is_drawn_where_the_network_knows_that(tmp_path, capsys):
    line = f"stroke {GREY} --image=a.png --num_samples=4"
    images, _ = drawn(line, tmp_path, capsys)
    assert np.load(tmp_path / "x.npz")["labels"].tolist() == [3] * 4
    same, _ = drawn(f"{line} --labels=3", tmp_path, capsys)
    assert np.array_equal(images, same)
    drawn(f"{line.replace('grey', 'two')}", tmp_path, capsys)
    assert np.load(tmp_path / "x.npz")["labels"].tolist() == [0, 1, 2, 0]


def test_interpolation_ends_at_what_sample_draws(tmp_path, capsys):
    images, _ = drawn(f"interpolate {GREY} --seeds=4,9 --num_samples=3", tmp_path, capsys)
    for place, seed in ((0, 4), (2, 9)):
        sample([GREY, "--num_samples=1", f"--seed={seed}", f"--output={tmp_path / 's.npz'}"])
        assert np.abs(np.load(tmp_path / "s.npz")["images"][0].astype(int) - images[place]).max() <= 1


def test_the_files_of_results(tmp_path):
    outputs = [f"--output={tmp_path / name}" for name in ("x.png", "x.gif", "folder")]
    line = f"interpolate {GREY} --image=a.png --image=b.png --num_samples=3 --labels=2 --scale=2 --columns=5"
    edit([*line.split(), *outputs])
    shown = pixels(tmp_path / "x.png")
    assert shown.shape == (24, 104, 3)  # five of 8 pixels with lines of 2, twice as large
    first, last = shown[4:20:2, 4:20:2], shown[4:20:2, 84:100:2]
    assert (first == pixels("a.png")).all()
    assert (last == pixels("b.png")).all()
    gif = Image.open(tmp_path / "x.gif")
    assert (gif.n_frames, gif.size) == (3, (16, 16))
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [f"00000{i}_class2.png" for i in range(3)]
    middle = pixels(tmp_path / "folder" / "000001_class2.png")
    assert (shown[4:20:2, 44:60:2] == middle).all()


@pytest.mark.parametrize("origin", ["openai", "edm"])
def test_models_of_other_programs(origin, tmp_path, capsys):
    network = openai(**SIZES[3]) if origin == "openai" else edm("ddpmpp")
    torch.save(network.state_dict(), tmp_path / "net.pt")
    line = f"--ckpt_path={origin}:{tmp_path / 'net.pt'} --image=small_rgb.png --steps=1 --num_samples=1"
    images, told = drawn(f"super-resolution {line}", tmp_path, capsys)
    assert images.shape == (1, 16, 16, 3)
    assert np.abs(images[0].reshape(4, 4, 4, 4, 3).mean((1, 3)) - pixels("small_rgb.png")).max() <= 0.51
    nfe = int(re.search(r"for each: (\d+)", told)[1])
    assert nfe == 1 if origin == "openai" else nfe > 20


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: EDIT"),
        ("blur --ckpt_path=grey", "invalid choice: 'blur'"),
        ("inpaint --image=a.png --mask=mask.png", "--ckpt_path"),
        (f"inpaint {GREY} --image=a.png", "inpaint needs --mask"),
        (f"inpaint {GREY} --mask=mask.png", "inpaint needs --image"),
        (f"denoise {GREY} --image=a.png", "denoise needs --sigma"),
        (f"denoise {GREY} --image=a.png --sigma=0", "--sigma: must be a finite number above 0"),
        (f"denoise {GREY} --image=a.png --sigma=1 --steps=3", "--steps is not an option of denoise, but of inpaint, "),
        (f"stroke {GREY} --image=a.png --mask=mask.png", "--mask is not an option of stroke, but of inpaint: leave it"),
        (f"stroke {GREY} --image=a.png --steps=3", "--steps is not an option of stroke"),
        (f"stroke {GREY} --image=a.png --image=b.png", "stroke takes 1 --image, got 2"),
        (f"interpolate {GREY} --image=a.png", "interpolate takes 0 or 2 --image, got 1"),
        (f"interpolate {GREY}", "interpolate needs two --image, or --seeds with at least two: --seeds 0,1"),
        (f"interpolate {GREY} --seeds=1", "interpolate needs two --image, or --seeds"),
        (f"interpolate {GREY} --seeds=1,-2", "--seeds: must be a whole number from 0"),
        (f"interpolate {GREY} --seeds=1,2 --image=a.png --image=b.png", "--seeds and --image cannot be combined"),
        (f"interpolate {GREY} --seeds=1,2 --labels=1,2", "interpolate draws one class: give --labels 1"),
        (f"variations {GREY} --amount=1.5", "--amount: must be a number in [0, 1]"),
        (f"variations {GREY} --amount=0.5 --image=a.png", "--amount and --image cannot be combined in variations"),
        (f"stroke {GREY} --image=a.png --amount=0", "--amount is not an option of stroke, but of variations: leave it"),
        (f"outpaint {GREY} --image=half.png --at=3", "--at: must be two whole numbers, TOP,LEFT"),
        (f"outpaint {GREY} --image=half.png --sigmas=1,2", "--sigmas must descend, got 1,2"),
        (f"outpaint {GREY} --image=half.png --sigmas=2,1 --steps=2", "--sigmas and --steps cannot be combined"),
        (f"super-resolution {GREY} --image=small.png --factor=1", "--factor: must be a whole number of at least 2"),
        (f"variations {GREY} --output=a.jpg", "--output a.jpg: give a .png, .gif, .npz, or a folder"),
        (f"variations {GREY} --output=/dev/null/x", "--output /dev/null/x"),
        (f"variations {GREY} --scale=0", "--scale"),
        (f"variations {GREY} --device=nonsense", "--device nonsense"),
    ],
)
def test_options_are_refused_before_a_model_is_read(line, message, capsys, monkeypatch):
    monkeypatch.setattr("cm_lightning.modules.loading.load_module", None)
    with pytest.raises((SystemExit, CmError)) as refused:
        edit(line.split())
    shown = capsys.readouterr().err if isinstance(refused.value, SystemExit) else str(refused.value)
    assert message in shown.splitlines()[0]
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"inpaint {GREY} --image=none.png --mask=mask.png", "--image none.png: file not found"),
        (f"inpaint {GREY} --image=a.png --mask=none.png", "--mask none.png: file not found"),
        (f"inpaint {GREY} --image=broken.png --mask=mask.png", "--image broken.png cannot be read as an image"),
        (f"inpaint {GREY} --image=. --mask=mask.png", "--image .: file not found"),
        (f"inpaint {GREY} --image=large.png --mask=mask.png",
         "--image large.png has 30 x 20 pixels, but the model draws 8 x 8: scale it, or add --resize"),
        (f"inpaint {GREY} --image=a.png --mask=large.png", "--mask large.png has 30 x 20 pixels"),
        (f"inpaint {GREY} --image=a.png --mask=black.png", "--mask black.png is black everywhere: make white what is"),
        (f"inpaint {GREY} --image=a.png --mask=white.png", "--mask white.png is white everywhere"),
        (f"outpaint {GREY} --image=a.png", "--image a.png has 8 x 8 pixels, the model 8 x 8: outpaint takes a smaller"),
        (f"outpaint {GREY} --image=large.png", "--image large.png has 30 x 20 pixels"),
        (f"outpaint {GREY} --image=half.png --at=5,0", "--at 5,0: the image ends beyond 8 x 8"),
        (f"colourise {GREY} --image=a.png", "--ckpt_path grey draws grey images: colourise needs"),
        (f"super-resolution {GREY} --image=half.png", "half.png has 8 x 4 pixels, and the model draws 8 x 8: its size"),
        (f"super-resolution {GREY} --image=a.png", "divided by a whole number from 2 up"),
        (f"super-resolution {GREY} --image=a.png --factor=3", "divided by --factor"),
        (f"super-resolution {GREY} --image=small.png --factor=4", "divided by --factor"),
        (f"super-resolution {GREY} --image=large.png", "its size must be that divided by"),
        (f"denoise {GREY} --image=a.png --sigma=90", "sigmas must lie in 0.002"),
        (f"stroke {GREY} --image=a.png --sigmas=90", "sigmas must lie in 0.002"),
        (f"stroke {GREY} --image=a.png --labels=5", "labels must lie in 0"),
        ("stroke --ckpt_path=colour --image=a.png --labels=0", "the network is unconditional"),
        ("stroke --ckpt_path=two --image=a.png --guidance=1", "guidance needs a network that was trained with label_d"),
        ("interpolate --ckpt_path=two --image=a.png --image=b.png", "interpolate draws images of one class: give --la"),
        ("stroke --ckpt_path=single --image=a.png",
         "this DistributionMatchingDistillation was trained at noise level 80 alone, where nothing of an image is l"),
        ("stroke --ckpt_path=matching --image=a.png --sigmas=1", "sigmas must lie in 1.5 ... 80"),
        ("inpaint --ckpt_path=stages --image=a.png --mask=mask.png --steps=3",
         "3 steps do not divide the 4 levels of the first teacher: choose a divisor"),
        ("variations --ckpt_path=none", "no checkpoint at none"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_named(line, message):
    with pytest.raises(CmError) as refused:
        edit(line.split())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
