import importlib
import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.metrics.extractor import Inception, MnistClassifier, SecondMnistClassifier
from cm_lightning.metrics.feature_scores import FeatureScores
from cm_lightning.metrics.features import DINOv2, TorchvisionFeatures
from cm_lightning.metrics.scores import Scores

SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The state dict of a small network with arbitrary weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(torchvision.models.get_model(SMALL).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "dinov2"
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 518}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


def pictures(n=6, channels=3):
    return torch.rand(n, channels, 20, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1


def features(extractor, images):
    network = extractor.distance().inception
    return network(extractor.prepare(images))


def test_the_features_are_what_the_last_layer_sees(small):
    network = torchvision.models.get_model(SMALL)
    network.load_state_dict(torch.load(small))
    seen = []
    network.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    transforms = torchvision.models.get_model_weights(SMALL).DEFAULT.transforms()
    images = pictures()
    network.eval()(transforms(((images + 1) * 127.5).round().byte()))
    found = features(TorchvisionFeatures(SMALL, str(small)), images)
    assert found.shape == (6, 1024)
    torch.testing.assert_close(found, seen[0])


def zeros_of(model):
    """A state dict of a network that is too large to be initialised for its shapes alone."""
    with torch.device("meta"):
        options = {"init_weights": False} if model == "inception_v3" else {}
        state = torchvision.models.get_model(model, **options).state_dict()
    return {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}


@pytest.mark.parametrize(
    "model", ["resnet18", "densenet121", "alexnet", "vit_b_32", "mobilenet_v3_small", "inception_v3", "squeezenet1_0"]
)
def test_classifiers_of_every_kind_have_features(model, tmp_path):
    save_file(zeros_of(model), tmp_path / "weights.safetensors")
    scores = Scores([FeatureScores(TorchvisionFeatures(model, str(tmp_path / "weights.safetensors")))])
    (measure,) = scores.measures
    network = measure.distance.inception
    assert measure.name == f"frechet_{model}"
    assert network(measure.extractor.prepare(pictures(2, channels=1))).shape == (2, network.num_features)


@pytest.mark.parametrize(
    ("file", "size"), [("resnet50-0676ba61.pth", [256]), ("resnet50-11ad3fa6.pth", [232]), ("mine.pth", [232])]
)
def test_the_transforms_are_those_of_the_file(file, size, tmp_path):
    torch.save(zeros_of("resnet50"), tmp_path / file)
    network = TorchvisionFeatures("resnet50", str(tmp_path / file)).distance().inception
    assert network.transforms.resize_size == size


def test_a_densenet_under_its_first_names_is_read(tmp_path):
    state = torchvision.models.get_model("densenet121").state_dict()
    old = {n.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for n, t in state.items()
           if not n.endswith("num_batches_tracked")}  # fmt: skip
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    network = TorchvisionFeatures("densenet121", str(tmp_path / "densenet121-a639ec97.pth")).distance().inception
    name = "features.denseblock1.denselayer1.conv2.weight"
    torch.testing.assert_close(network.network.state_dict()[name], state[name])


def test_weights_for_other_classes_are_taken(small, tmp_path):
    state = torch.load(small)
    state["fc.weight"], state["fc.bias"] = torch.zeros(7, 1024), torch.zeros(7)
    torch.save(state, tmp_path / "mine.pth")
    ours, theirs = (features(TorchvisionFeatures(SMALL, str(p)), pictures()) for p in (tmp_path / "mine.pth", small))
    torch.testing.assert_close(ours, theirs)


@pytest.fixture(scope="module")
def broken(tmp_path_factory, small):
    """A folder of files that are not the weights of SMALL, and the message for each."""
    tmp_path, state = tmp_path_factory.mktemp("broken"), torch.load(small)
    torch.save(torchvision.models.get_model("squeezenet1_1").state_dict(), tmp_path / "other.pth")
    torch.save(torchvision.models.get_model("squeezenet1_1"), tmp_path / "pickled.pth")
    (tmp_path / "cut.pth").write_bytes(small.read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({n: t for n, t in state.items() if n != "conv5.0.weight"}, tmp_path / "lacking.pth")
    torch.save({**state, "conv5.0.weight": torch.zeros(3)}, tmp_path / "shape.pth")
    torch.save({}, tmp_path / "nothing.pth")
    return tmp_path, {
        "nowhere.pth": "file not found: .*nowhere.pth: set the weights of TorchvisionFeatures",
        ".": "file not found: ",
        "other.pth": "other.pth holds another network than shufflenet_v2_x0_5: .* set model and weights",
        "pickled.pth": r"pickled.pth does not hold a state dict: .*model.state_dict\(\)",
        "cut.pth": "cut.pth does not hold a state dict: set the weights of TorchvisionFeatures",
        "text.pth": "text.pth does not hold a state dict",
        "empty.safetensors": "empty.safetensors does not hold a state dict",
        "list.pth": "list.pth does not hold a state dict",
        "lacking.pth": r"1 tensors differ, such as conv5.0.weight",
        "shape.pth": r"1 tensors differ, such as conv5.0.weight",
        "nothing.pth": "holds another network",
    }


@pytest.mark.parametrize(
    "file",
    ["nowhere.pth", ".", "other.pth", "pickled.pth", "cut.pth", "text.pth", "empty.safetensors", "list.pth",
     "lacking.pth", "shape.pth", "nothing.pth"],
)  # fmt: skip
def test_wrong_weights_get_a_line(file, broken):
    folder, lines = broken
    with pytest.raises(CheckpointError, match=lines[file]) as error:
        TorchvisionFeatures(SMALL, str(folder / file)).distance()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["resnet_50", "resnet5", "fcn_resnet50", "", "no such"])
def test_a_model_that_torchvision_lacks_gets_a_line(model):
    with pytest.raises(
        ConfigError, match=r"TorchvisionFeatures: torchvision does not have a classifier .*: set model to \w+"
    ):
        TorchvisionFeatures(model)


def test_a_network_that_classifies_each_place_gives_the_mean_over_places(tmp_path):
    network = torchvision.models.get_model("squeezenet1_1").eval()
    torch.save(network.state_dict(), tmp_path / "s.pth")
    images = pictures(2)
    pixels = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.transforms()(
        ((images + 1) * 127.5).round().byte()
    )
    found = features(TorchvisionFeatures("squeezenet1_1", str(tmp_path / "s.pth")), images)
    torch.testing.assert_close(found, network.features(pixels).mean((2, 3)))


def test_without_weights_a_line_says_where_to_put_them(small, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    extractor = TorchvisionFeatures(SMALL)
    line = extractor.missing()
    assert line.startswith("put https://download.pytorch.org/models/shufflenetv2_x0.5-")
    assert f"into {tmp_path}/checkpoints, or set the extractor's weights" in line
    path = tmp_path / "checkpoints" / line.split()[1].rpartition("/")[2]
    path.parent.mkdir()
    path.write_bytes(small.read_bytes())
    assert extractor.missing() is None
    assert features(extractor, pictures()).shape == (6, 1024)
    assert extractor.identity() == TorchvisionFeatures(SMALL, str(small)).identity()
    assert TorchvisionFeatures(SMALL, "nowhere.pth").missing() is None  # it is wrong, not missing


def test_dinov2_gives_the_class_token_of_the_whole_image(dino):
    extractor = DINOv2(str(dino))
    found = features(extractor, pictures(2))
    model = Dinov2Model.from_pretrained(dino).eval()
    pixels = ((pictures(2) + 1) * 127.5).round().byte().float() / 255
    x = torch.nn.functional.interpolate(pixels, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = model((x - mean[:, None, None]) / std[:, None, None]).pooler_output
    torch.testing.assert_close(found, expected)
    assert features(DINOv2(str(dino)), pictures(2, channels=1)).shape == (2, 16)
    scores = Scores([FeatureScores(extractor)])
    scores.add_reference([pictures()])
    assert scores([(pictures(), None)]).keys() == {"frechet_dinov2", "kid_dinov2", "precision_dinov2", "recall_dinov2"}
    assert len(extractor.identity()) == 16


def test_wrong_folders_of_dinov2_get_a_line(dino, tmp_path):
    for folder in ("nowhere", "facebook/dinov2-none", str(tmp_path)):
        line = f"DINOv2 is missing or incomplete at {folder}: set the weights of DINOv2"
        with pytest.raises(CheckpointError, match=line):
            DINOv2(folder).distance()
    ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "vit")
    with pytest.raises(CheckpointError, match="vit holds a vit: set the weights of DINOv2"):
        DINOv2(str(tmp_path / "vit")).distance()
    model = Dinov2Model.from_pretrained(dino)
    state = {n: t for n, t in model.state_dict().items() if n != "layernorm.weight"}
    model.save_pretrained(tmp_path / "lacking", state_dict=state)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, such as layernorm.weight"):
        DINOv2(str(tmp_path / "lacking")).distance()
    (tmp_path / "lacking/model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="DINOv2 is missing or incomplete"):
        DINOv2(str(tmp_path / "lacking")).distance()


def test_without_transformers_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"DINOv2: this needs transformers: pip install 'cm-lightning\[lcm\]'"):
        DINOv2("x").distance()


@pytest.mark.parametrize(("weights", "answers", "asked"), [("facebook/dinov2-x", True, True),
                                                           ("facebook/dinov2-x", False, False),
                                                           ("nowhere", True, False)])  # fmt: skip
def test_dinov2_is_downloaded_by_a_name_of_the_hub_that_answers(weights, answers, asked, dino, monkeypatch):
    calls = []

    def snapshot(name, local_files_only, allow_patterns):
        calls.append((name, not local_files_only))
        return str(dino)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("cm_lightning.hub.reachable", lambda: answers)
    assert features(DINOv2(weights), pictures(2)).shape == (2, 16)
    assert calls == [(weights, asked)]


@pytest.mark.parametrize(
    ("extractor", "frechet", "kid", "precision", "accuracy"),
    [
        (MnistClassifier(), "frechet_mnist", "kid_mnist", "precision_mnist", "accuracy"),
        (SecondMnistClassifier(), "frechet_mnist2", "kid_mnist2", "precision_mnist2", "accuracy2"),
        (Inception(), "fid", "kid", "precision", "accuracy"),
        (TorchvisionFeatures(), "frechet_resnet50", "kid_resnet50", "precision_resnet50", "accuracy"),
        (DINOv2("x"), "frechet_dinov2", "kid_dinov2", "precision_dinov2", "accuracy"),
    ],
)
def test_names_of_the_scores(extractor, frechet, kid, precision, accuracy):
    names = (extractor.name, extractor.named("kid"), extractor.named("precision"), extractor.accuracy_name)
    assert names == (frechet, kid, precision, accuracy)
    assert type(extractor).__name__ in importlib.import_module("cm_lightning").__all__
