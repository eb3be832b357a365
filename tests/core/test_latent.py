import math

import pytest
import torch

from cm_lightning.core.curriculum import Clock
from cm_lightning.core.distance import elementwise_huber
from cm_lightning.core.guidance import guidance_embedding, guided, guided_function
from cm_lightning.core.latent import (
    LatentSchedule,
    ScaledBoundary,
    Timesteps,
    ddim_timesteps,
    lcm_sample,
    lcm_timesteps,
)
from cm_lightning.core.noise import expand
from cm_lightning.core.solver import euler_step
from cm_lightning.errors import ConfigError

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # Stable Diffusion's
ALPHAS = (1 - BETAS).cumprod(0)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def ddim(schedule, network, z_t, t, r):
    return euler_step(lambda x, t: schedule.clean(network(x, t), x, t), z_t, t, r, schedule)


class ExactGaussian:
    """The network's output for latents N(0, s^2): E[target | z_t] = z_t cov(target, z_t) / var(z_t)."""

    def __init__(self, schedule, s):
        self.schedule, self.s = schedule, s

    def __call__(self, z_t, t):
        a, b = (expand(scale, z_t) for scale in self.schedule.scales(t))
        covariance = {"epsilon": b, "sample": a * self.s**2, "v_prediction": a * b * (1 - self.s**2)}
        return z_t * covariance[self.schedule.prediction] / (a**2 * self.s**2 + b**2)


def test_timesteps_are_the_published_ones():
    assert ddim_timesteps().tolist() == list(range(19, 1000, 20))
    assert lcm_timesteps(1) == [999]
    assert lcm_timesteps(2) == [999, 499]
    assert lcm_timesteps(4) == [999, 759, 499, 259]
    assert lcm_timesteps(8) == [999, 879, 759, 639, 499, 379, 259, 139]
    for steps in (0, 51):
        with pytest.raises(ConfigError, match=r"steps must lie in 1 \.\.\. 50"):
            lcm_timesteps(steps)
    with pytest.raises(ConfigError, match="do not divide 1000"):
        ddim_timesteps(30)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_give_back_the_latent_and_the_noise(prediction):
    schedule, t = LatentSchedule(ALPHAS, prediction), torch.tensor([1, 300, 999])
    x, epsilon = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    z_t, target = schedule.point(x, epsilon, t), schedule.target(x, t, epsilon)
    clean = schedule.clean(target, z_t, t)
    torch.testing.assert_close((clean, schedule.noise(z_t, clean, t)), (x, epsilon), rtol=1e-9, atol=1e-9)
    r = torch.tensor([0, 280, 500])
    torch.testing.assert_close(ddim(schedule, lambda *_: target, z_t, t, r), schedule.point(x, epsilon, r))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_ddim_step_follows_the_trajectory_of_unit_gaussian_latents_exactly(prediction):
    """For N(0, 1) every z_t is N(0, 1), and a trajectory z_t = x cos + epsilon sin turns by a known angle."""
    schedule, t, r = LatentSchedule(ALPHAS, prediction), torch.tensor([519, 999]), torch.tensor([499, 979])
    z_t = torch.randn(2, 4, 2, 2, dtype=torch.float64)
    step = ddim(schedule, ExactGaussian(schedule, 1.0), z_t, t, r)
    (a, b), (c, d) = schedule.scales(t), schedule.scales(r)
    torch.testing.assert_close(step, z_t * expand(a * c + b * d, z_t))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_s_error_falls_with_the_square_of_the_step(prediction):
    """z_r = z_t sqrt(V(r) / V(t)) exactly, V(t) = alpha^2 s^2 + sigma^2; DDIM's local error is of second order."""
    schedule, t = LatentSchedule(ALPHAS, prediction), torch.tensor([600])
    z_t, errors = torch.ones(1, 1, dtype=torch.float64), []
    for k in (20, 40):
        r = t - k
        (a, b), (c, d) = schedule.scales(t), schedule.scales(r)
        exact = z_t * ((0.25 * c**2 + d**2) / (0.25 * a**2 + b**2)).sqrt()
        errors.append((ddim(schedule, ExactGaussian(schedule, 0.5), z_t, t, r) - exact).abs().item())
    assert math.log2(errors[1] / errors[0]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guiding_the_output_guides_x0_and_epsilon(prediction):
    schedule, t, w = LatentSchedule(ALPHAS, prediction), torch.tensor([100, 900]), torch.tensor([0.0, 3.0])
    z_t, c, u = torch.randn(3, 2, 4, dtype=torch.float64)
    x0, x0_c, x0_u = (schedule.clean(output, z_t, t) for output in (guided(c, u, w), c, u))
    torch.testing.assert_close(x0, guided(x0_c, x0_u, w))
    noise = [schedule.noise(z_t, clean, t) for clean in (x0, x0_c, x0_u)]
    torch.testing.assert_close(noise[0], guided(noise[1], noise[2], w))
    torch.testing.assert_close(guided(c, u, torch.zeros(2)), c)  # w = guidance_scale - 1


def test_a_guided_function_asks_for_the_null_class_in_the_same_batch():
    asked = []

    def f(x, t, labels):
        asked.append(labels.tolist())
        return labels[:, None].double() + 0 * x

    x, t, labels = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2), torch.tensor([3, 4])
    torch.testing.assert_close(
        guided_function(f, labels, 10, 2.0)(x, t).flatten(), torch.tensor([-11.0, -8.0]).double()
    )
    torch.testing.assert_close(guided_function(f, labels, 10, 0.0)(x, t).flatten(), torch.tensor([3.0, 4.0]).double())
    assert asked == [[3, 4, 10, 10], [3, 4]]


def test_the_boundary_is_the_identity():
    c_skip, c_out = ScaledBoundary().coefficients(torch.tensor([0, 1, 999]))
    assert (c_skip[0], c_out[0]) == (1, 0)
    assert c_skip[1].item() == pytest.approx(0.25 / 100.25)
    assert c_out[1].item() == pytest.approx(10 / 100.25**0.5)
    assert c_out[2].item() == pytest.approx(1, abs=1e-6)


def test_training_pairs_are_neighbours_on_the_teacher_s_grid():
    t, q, r = Timesteps(50, 1000).draw(2000, Clock(0, 1), generator=torch.Generator().manual_seed(0))
    assert set(t.tolist()) == set(range(19, 1000, 20))
    assert torch.equal(q, (t - 20).clamp(min=0))
    assert not r.any()


def test_huber_is_by_elements_and_smooth_at_zero():
    x = torch.zeros(2, 3, requires_grad=True)
    y = torch.tensor([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    loss = elementwise_huber(x, y)
    torch.testing.assert_close(loss.detach(), torch.tensor([0.0, (3 + 4 - 0.002) / 3]), atol=1e-6, rtol=0)
    loss.sum().backward()
    assert x.grad.isfinite().all()


def test_sampling_starts_from_noise_and_renoises_between():
    schedule, seen = LatentSchedule(ALPHAS), []
    z = torch.randn(2, 4, dtype=torch.float64)

    def f(x, t):
        seen.append((x, t[0].item()))
        return torch.full_like(x, 2.0)

    x = lcm_sample(f, schedule, z, lcm_timesteps(2), torch.ones_like)
    assert [t for _, t in seen] == [999, 499]
    torch.testing.assert_close(seen[0][0], z)
    torch.testing.assert_close(seen[1][0][0, 0], 2 * ALPHAS[499].sqrt() + (1 - ALPHAS[499]).sqrt())
    assert (x == 2).all()


def test_schedule_and_embedding_are_diffusers_own():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), ALPHAS, rtol=1e-4, atol=0)
    for steps in (1, 3, 4, 7, 50):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == lcm_timesteps(steps)
    w = torch.tensor([0.0, 7.5])
    theirs = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, 256)
    torch.testing.assert_close(guidance_embedding(w), theirs)
    with pytest.raises(ConfigError, match="even width"):
        guidance_embedding(w, 7)
