import pytest
import torch
from torch import nn

from cm_lightning.backbones.embedding import FourierEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.protocol import Backbone
from cm_lightning.backbones.unet import UNet


def tiny(**options) -> UNet:
    torch.manual_seed(0)
    net = UNet(**{"channels": 8, "multipliers": (1, 2), "blocks": 1, "head_width": 8, **options})
    for p in net.parameters():  # also the layers that start at zero, or nothing would reach the output
        nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (4, 27, 21), (2, 9, 7)])
def test_any_size_and_any_number_of_channels(shape, patch):
    net = tiny(image_channels=shape[0], patch=patch, multipliers=(1, 2, 2))
    out = net(torch.randn(2, *shape), torch.zeros(2))
    assert out.shape == (2, *shape)
    assert isinstance(net, Backbone)


def test_a_new_network_is_zero_so_that_the_consistency_function_starts_as_its_skip():
    net = UNet(image_channels=1, channels=8, multipliers=(1, 2), blocks=1)
    assert not net(torch.randn(2, 1, 8, 8), torch.zeros(2)).any()


def test_classes_the_null_class_and_noise_reach_the_output():
    net = tiny(image_channels=1, num_classes=3)
    x, noise = torch.randn(1, 1, 8, 8), torch.zeros(1)
    null = net(x, noise)
    assert torch.equal(net(x, noise, torch.tensor([3])), null)
    assert not torch.allclose(net(x, noise, torch.tensor([0])), null)
    assert not torch.allclose(net(x, noise + 1), null)


def test_attention_joins_all_pixels_and_only_at_its_levels():
    def reaches_the_far_corner(levels):
        net = tiny(image_channels=1, multipliers=(1,), blocks=1, attention_levels=levels)
        for block in net.modules():  # group norm joins all pixels too
            if isinstance(block, nn.GroupNorm):
                block.forward = lambda x: x
        x = torch.randn(1, 1, 32, 32, requires_grad=True)
        net(x, torch.zeros(1))[0, 0, 0, 0].backward()
        return bool(x.grad[0, 0, -1, -1] != 0)

    assert reaches_the_far_corner((0,))
    assert not reaches_the_far_corner(())


def test_dropout_acts_in_training_only():
    net = tiny(image_channels=1, dropout=0.5)
    x, noise = torch.randn(1, 1, 8, 8), torch.zeros(1)
    assert not torch.equal(net(x, noise), net(x, noise))
    net.eval()
    assert torch.equal(net(x, noise), net(x, noise))


def test_weights_and_activations_are_channels_last():
    net = tiny(image_channels=1)
    assert net.stem.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    net.stem.register_forward_hook(lambda m, i, o: seen.append(o.is_contiguous(memory_format=torch.channels_last)))
    net(torch.randn(2, 1, 8, 8), torch.zeros(2))
    assert seen == [True]


def test_a_noise_embedding_of_ones_own():
    net = tiny(image_channels=1, noise_embedding=FourierEmbedding(8, scale=0.02))
    assert net(torch.randn(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)
    assert "conditioning.noise.frequencies" in net.state_dict()  # random, so it must be saved


def test_mlp_keeps_the_shape_of_its_samples():
    net = ResidualMLP(dim=2, width=16, depth=2, num_classes=4)
    assert net(torch.randn(5, 2), torch.zeros(5), torch.arange(5) % 4).shape == (5, 2)
    assert ResidualMLP(dim=12, width=16)(torch.randn(5, 3, 2, 2), torch.zeros(5)).shape == (5, 3, 2, 2)
    assert isinstance(net, Backbone)
