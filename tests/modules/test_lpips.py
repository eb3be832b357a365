import pytest
import torch
import torchvision
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.modules.lpips import LPIPS


class Convolutions(torch.nn.Module):
    """VGG-16 without its classifier, whose 120 million weights LPIPS does not need."""

    def __init__(self, weights=None):
        super().__init__()
        self.features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])


@pytest.fixture(scope="module", autouse=True)
def without_a_classifier():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "vgg16", Convolutions)
        yield


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A file in torchvision's format with arbitrary weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vgg16-397923af.pth"
    network = Convolutions()
    for p in network.parameters():
        torch.nn.init.kaiming_normal_(p, nonlinearity="relu") if p.ndim > 1 else torch.nn.init.zeros_(p)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def distance(vgg):
    return LPIPS(str(vgg))


def test_it_is_torchmetrics_on_enlarged_images(vgg, distance, monkeypatch):
    torch.manual_seed(1)
    x, y = (torch.rand(2, 3, 16, 16) * 2 - 1 for _ in range(2))
    ours = distance(x, y)
    assert ours.shape == (2,)
    state = torch.load(vgg, weights_only=True)

    class Loaded(Convolutions):
        def __init__(self, weights):
            super().__init__()
            self.load_state_dict(state)

    monkeypatch.setattr(torchvision.models, "vgg16", Loaded)
    theirs = LearnedPerceptualImagePatchSimilarity("vgg", reduction="sum")
    large = [torch.nn.functional.interpolate(i, (224, 224), mode="bilinear").clamp(-1, 1) for i in (x, y)]
    assert ours.sum().item() == pytest.approx(theirs(*large).item(), rel=1e-4)


def test_its_gradient_reaches_the_image_and_nothing_else(distance):
    x = (torch.rand(1, 1, 16, 16) * 2 - 1).requires_grad_()
    assert distance(x, x.detach()).item() == 0
    distance(x, -x.detach()).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in distance.network.network.parameters())


def test_average_pooling_as_in_cm_s_code(vgg, distance):
    x, y = (torch.rand(1, 3, 16, 16) * 2 - 1 for _ in range(2))
    average = LPIPS(str(vgg), pooling="avg")
    assert not torch.allclose(average(x, y), distance(x, y), rtol=1e-2)
    assert not any(isinstance(layer, torch.nn.MaxPool2d) for layer in average.network.network.modules())


def test_loading_leaves_the_training_s_numbers_alone(vgg):
    distance, x = LPIPS(str(vgg)), torch.rand(1, 3, 16, 16)
    state = torch.get_rng_state()
    with torch.inference_mode():
        distance(x, x)
    assert torch.equal(torch.get_rng_state(), state)
    x = x.clone().requires_grad_()
    distance(x, -x.detach()).sum().backward()  # though it was loaded in inference mode


def test_mixed_precision_does_not_round_it(distance):
    x, y = (torch.rand(1, 3, 16, 16) * 2 - 1 for _ in range(2))
    exact = distance(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(x, y), exact)


def test_errors_name_the_file(distance, tmp_path, monkeypatch):
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(CheckpointError, match=r"file not found: nowhere.pth: set the distance's weights"):
        LPIPS("nowhere.pth")(x, x)
    (tmp_path / "other.pth").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"other.pth does not hold"):
        LPIPS(str(tmp_path / "other.pth"))(x, x)
    with pytest.raises(ConfigError, match="grey or colour"):
        distance(torch.zeros(2, 2), torch.zeros(2, 2))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "vgg16", offline)
    with pytest.raises(ConfigError, match=r"vgg16-397923af.pth, which could not be downloaded: .*weights"):
        LPIPS()(x, x)
