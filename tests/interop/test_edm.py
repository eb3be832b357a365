import pytest
import torch

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.ddpmpp import DDPMpp
from cm_lightning.backbones.ncsnpp import NCSNpp
from cm_lightning.errors import CheckpointError
from cm_lightning.interop.edm import network_from_edm
from tests.interop.edm_reference import EDMNet

KINDS = {"ddpmpp": (DDPMpp, 16), "ncsnpp": (NCSNpp, 16), "adm": (ADM, 64)}


def reference(kind, num_classes=0):
    torch.manual_seed(0)
    network = EDMNet(kind, 16, KINDS[kind][1], (1, 2, 2), 1, (8,), num_classes).eval()
    for name, p in network.named_parameters():
        torch.nn.init.normal_(p, std=0.05 if p.ndim > 1 and "map" not in name else 0.3)
    return network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_same_output_as_the_published_structure(kind, num_classes):
    theirs = reference(kind, num_classes)
    ours, side = network_from_edm({f"model.{name}": t for name, t in theirs.state_dict().items()})
    assert (type(ours), side, ours.num_classes) == (KINDS[kind][0], 16, num_classes)
    x, noise = torch.randn(2, 3, 16, 16), 0.25 * torch.tensor([80.0, 0.5]).log()
    labels = torch.tensor([1, 2]) if num_classes else None
    hot = torch.eye(3)[labels] if num_classes else None
    with torch.no_grad():
        expected = theirs(x, noise, hot)
        torch.testing.assert_close(ours(x, noise, labels), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        if num_classes:  # no label at all is the null class
            null = theirs(x, noise, torch.zeros(2, 3))
            torch.testing.assert_close(ours(x, noise), null, rtol=1e-5, atol=1e-5 * null.abs().max().item())


def test_what_is_not_a_whole_network_is_named():
    state = reference("ddpmpp").state_dict()
    with pytest.raises(CheckpointError, match="not the tensors of a network of EDM"):
        network_from_edm({"weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="is missing: the file is not complete"):
        network_from_edm({n: t for n, t in state.items() if n != "dec.4x4_in1.conv1.bias"})
    with pytest.raises(CheckpointError, match="which is not part of that network"):
        network_from_edm({**state, "extra.weight": torch.zeros(1)})
