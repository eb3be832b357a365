import pytest
import torch

from cm_lightning.modules.first_failure import FirstFailure

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("losses", "first"),
    [([], -1), ([1.0, -3.0, 0.0], -1), ([NAN], 0), ([1.0, INF, NAN], 1), ([2.0, 1.0, -INF, 1.0], 2), ([INF, 1.0], 0)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_loss_that_is_not_finite_is_kept(losses, first, dtype):
    failure = FirstFailure()
    for number, loss in enumerate(losses):
        failure.note(number, torch.tensor(loss, dtype=dtype, requires_grad=True))
    assert int(failure.number) == first
    assert failure.number.dtype == torch.int64
    assert not failure.number.requires_grad
