import pytest
import torch

from cm_lightning.core.parameterization import EDM, BoundaryShifted

GOLDEN = [  # sigma, c_skip, c_out, c_in
    (0.002, 1.0, 0.0, 1.99998400019),
    (0.5, 0.502003999968, 0.352139177031, 1.41421356237),
    (80.0, 3.90629272264e-05, 0.499977734905, 0.0124997558665),
]


@pytest.mark.parametrize(("sigma", "c_skip", "c_out", "c_in"), GOLDEN)
def test_boundary_shifted_coefficients(sigma, c_skip, c_out, c_in):
    c = BoundaryShifted().coefficients(torch.tensor([sigma], dtype=torch.float64))
    assert c.c_skip.item() == pytest.approx(c_skip, rel=1e-11)
    assert c.c_out.item() == pytest.approx(c_out, rel=1e-11)
    assert c.c_in.item() == pytest.approx(c_in, rel=1e-11)
    assert c.c_noise.item() == pytest.approx(0.25 * torch.tensor(sigma).double().log().item())


def test_openai_noise_label():
    c = BoundaryShifted(noise_scale=250).coefficients(torch.tensor([2.0], dtype=torch.float64))
    assert c.c_noise.item() == pytest.approx(1000 * 0.25 * 0.6931471805599453)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [0.002, 0.001, 0.0])
def test_identity_at_the_boundary_and_below_for_any_weights(dtype, level):
    x = torch.randn(4, 3, 8, 8).to(dtype)
    wild = lambda x, noise, label: 1e3 * torch.randn_like(x) + noise.view(-1, 1, 1, 1)
    out = BoundaryShifted()(wild, x, torch.full((4,), level, dtype=dtype))
    assert out.dtype == dtype
    assert torch.equal(out, x)


def test_without_the_shift_it_is_edm():
    sigma = torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=torch.float64)
    for ours, edm in zip(BoundaryShifted(sigma_min=0.0).coefficients(sigma), EDM().coefficients(sigma), strict=True):
        torch.testing.assert_close(ours, edm)


def test_edm_gives_the_network_unit_variance_in_and_asks_for_unit_variance_out():
    data, sigma = 0.5 * torch.randn(200_000, 1), torch.full((200_000,), 1.3)
    noisy = data + 1.3 * torch.randn_like(data)
    c = EDM().coefficients(sigma[:1])
    assert (c.c_in * noisy).std().item() == pytest.approx(1, abs=0.01)
    assert ((data - c.c_skip * noisy) / c.c_out).std().item() == pytest.approx(1, abs=0.01)
