import pytest
import torch

from cm_lightning.core.distance import L1, L2, PseudoHuber, l1, l2, pseudo_huber


def test_closed_forms():
    x, y = torch.zeros(2, 1, 2, 2), torch.tensor([[[[3.0, 0], [0, 4]]], [[[0.0, 0], [0, 0]]]])
    assert l1(x, y).tolist() == [1.75, 0]
    assert l2(x, y).tolist() == [6.25, 0]
    assert pseudo_huber(x, y, c=12.0).tolist() == pytest.approx([13 - 12, 0])  # the norm of the whole sample is 5
    assert pseudo_huber(x, y, c=0).tolist() == [5, 0]
    for distance, function in ((L1(), l1), (L2(), l2), (PseudoHuber(), pseudo_huber)):
        assert torch.equal(distance(x, y), function(x, y))


def test_default_c_is_ict_s():
    x = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    c = 0.0299298380
    y = x + 2 * c / 3072**0.5  # at distance 2 c: sqrt(5) c - c
    assert pseudo_huber(x, y).item() == pytest.approx((5**0.5 - 1) * c, rel=1e-9)


@pytest.mark.parametrize("c", [None, 0.0, 1e-8])
def test_gradient_is_finite_where_the_images_are_equal(c):
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    pseudo_huber(x, torch.ones(2, 3, 4, 4), c).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_small_distances_keep_their_digits_in_float32():
    x = torch.zeros(1, 1000)
    y = torch.full((1, 1000), 1e-6)
    exact = pseudo_huber(x.double(), y.double(), 0.03).item()
    assert pseudo_huber(x, y, 0.03).item() == pytest.approx(exact, rel=1e-4)
