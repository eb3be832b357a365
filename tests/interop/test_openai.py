import pytest
import torch

from cm_lightning.errors import CheckpointError
from cm_lightning.interop.openai import adm_from_openai
from tests.backbones.zoo import awake
from tests.interop.openai_reference import OpenAIUNet

SIZES = [
    {"channels": 128, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,), "num_classes": 3},
    # two levels of one width, as LSUN's: no shape tells where one ends
    {"channels": 64, "multipliers": (2, 2), "blocks": 2, "attention_levels": (0,), "scale_shift": False},
    # fewer than 128 channels: still 32 groups in every norm
    {"channels": 64, "multipliers": (1, 1), "blocks": 1, "attention_levels": (1,), "num_classes": 3},
    {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,)},
    {"channels": 32, "multipliers": (1, 3, 2), "blocks": 2, "attention_levels": (), "scale_shift": False},
]


def reference(**sizes):
    network = awake(OpenAIUNet(**sizes)).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.05 if p.ndim > 1 else 0.3)
    return network


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("flat", [False, True])
def test_the_same_output_as_the_published_structure(sizes, flat):
    theirs = reference(**sizes)
    state = theirs.state_dict()
    if flat:  # attention as a 1-D convolution
        state = {n: t[..., 0] if ".qkv.w" in n or "proj_out.w" in n else t for n, t in state.items()}
    ours = adm_from_openai(state)
    x, t = torch.randn(2, 3, 8, 8), 250 * torch.tensor([80.0, 0.5]).log()
    y = torch.tensor([0, 2]) if sizes.get("num_classes") else None
    with torch.no_grad():
        expected = theirs(x, t, y)
        torch.testing.assert_close(ours(x, t, y), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert ours.num_classes == sizes.get("num_classes", 0)


def test_the_other_order_of_attention_would_be_seen():
    theirs = reference(**SIZES[0])
    state = theirs.state_dict()
    for name in [n for n in state if ".qkv." in n]:
        state[name] = state[name].unflatten(0, (3, -1, 64)).transpose(0, 1).flatten(0, 2).contiguous()
    x, t, y = torch.randn(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 2])
    with torch.no_grad():
        assert not torch.allclose(adm_from_openai(state)(x, t, y), theirs(x, t, y), rtol=1e-2, atol=1e-2)


def test_what_is_not_a_whole_network_is_named():
    state = reference(**SIZES[0]).state_dict()
    with pytest.raises(CheckpointError, match="not the tensors of OpenAI's UNetModel"):
        adm_from_openai({"weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"head\.2\.bias is missing: the file is not complete"):
        adm_from_openai({n: t for n, t in state.items() if n != "out.2.bias"})
    with pytest.raises(CheckpointError, match=r"it has extra\.weight, which is not part"):
        adm_from_openai({**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"head\.2\.bias has shape \(4,\), but \(3,\) was expected"):
        adm_from_openai({**state, "out.2.bias": torch.zeros(4)})
