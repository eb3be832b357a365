"""Progressive distillation: its steps, its weights, and the student's step against its teacher's two."""

import pytest
import torch

from cm_lightning.core.curriculum import Clock
from cm_lightning.core.distance import L2
from cm_lightning.core.halving import HalvingLevels, StepMap, TruncatedSNR, WholeSteps, stay
from cm_lightning.core.noise import karras_sigmas
from cm_lightning.core.objective import Chord
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.path import DDPM
from cm_lightning.core.schedule import StagedDecay
from cm_lightning.core.trajectory import Teacher
from cm_lightning.errors import ConfigError

ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)


def test_the_student_s_target_on_stable_diffusion_s_path():
    """x = 1 at 749, data N(0, 0.5^2): the image for which one step ends where two of the exact denoiser's do."""
    path, x = DDPM(ALPHAS), torch.ones(1, 1).double()
    t, q = torch.tensor([749]), torch.tensor([499])
    oracle = GaussianOracle(0.5, path=path)
    two = Teacher(lambda x, t, c: oracle.denoiser(x, t), path, "euler", steps=2).advance(x, x, x, t, q)
    one = StepMap(lambda x, t, c: torch.full_like(x, 0.084345711404), path)(x, t, q)
    assert one.item() == pytest.approx(two.item(), rel=1e-9) == pytest.approx(0.901917880300)


def test_the_weighted_distance_is_that_of_the_denoisers():
    t, q = torch.tensor([4.0, 0.5, 0.03]).double(), torch.tensor([1.0, 0.4, 0.02]).double()
    x, images = torch.randn(3, 5).double(), torch.randn(2, 3, 5).double()
    ends = [StepMap(lambda x, t, c, image=image: image)(x, t, q) for image in images]
    found = TruncatedSNR()(t, q) * L2()(*ends)
    torch.testing.assert_close(found, torch.clamp(t**-2, min=1) * L2()(*images))


def test_the_levels_halve_from_stage_to_stage():
    curriculum = WholeSteps(HalvingLevels(8, 3))
    assert [curriculum.levels(step, 9) - 1 for step in range(10)] == [8, 8, 8, 4, 4, 4, 2, 2, 2, 2]
    assert curriculum.phase(Clock(4, 9)) == "8 -> 4 steps"
    t, q, r = curriculum.draw(500, Clock(4, 9), generator=torch.Generator().manual_seed(0))
    grid = karras_sigmas(5).float()
    assert torch.equal(q, r)
    assert torch.equal(torch.stack([t, q], 1).unique(dim=0).flip(0), torch.stack([grid[:-1], grid[1:]], 1))


def test_a_student_that_goes_as_its_teacher_has_no_loss():
    """Of data in one point the denoiser is constant, so a step is as good as two."""
    teacher = Teacher(lambda x, t, c: torch.full_like(x, 0.3), solver="euler", steps=2, rho=7.0)
    chord = Chord(WholeSteps(HalvingLevels(8, 3)), teacher, L2(), TruncatedSNR())
    x, losses = torch.full((64, 2), 0.3).double(), []
    for at in (0.3, 0.4):
        own = StepMap(lambda x, t, c, at=at: torch.full_like(x, at))
        losses.append(chord.loss(own, stay, x, None, Clock(0, 1), torch.Generator().manual_seed(0)).item())
    assert losses[0] < 1e-8
    assert losses[1] >= 0.01


def test_the_rate_falls_in_each_stage_anew():
    decay = StagedDecay(2)
    assert [decay(step, 8) for step in range(8)] == pytest.approx([1, 0.75, 0.5, 0.25] * 2)
    assert StagedDecay(3)(3, 10) == pytest.approx(0.1)


def test_steps_that_cannot_be_halved_are_refused():
    HalvingLevels(24, 4)
    with pytest.raises(ConfigError, match=r"^HalvingLevels: steps must be a multiple of 16 for .*, got 24"):
        HalvingLevels(24, 5)
