"""Batched steps of a stream: the pictures of frames that share passes are those of frames that are drawn alone."""

import pytest
import torch

from cm_lightning.core.stream_batch import Stages, StreamBatch

FRAMES = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stages(levels):
    """The steps, and the levels at which f is called."""
    seen = []
    noise = torch.randn(len(levels), 1, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def f(x, t):
        assert t.shape == (len(x),)
        assert t.dtype == (torch.long if isinstance(levels[0], int) else x.dtype)
        seen.append(t.tolist())
        return x.tanh() / (1 + t[:, None, None, None])

    def noised(x, level):
        return x + level * noise[levels.index(level)]

    return Stages(lambda image: noised(image[None], levels[0]), f, levels, noised, lambda x: x[0]), seen


@pytest.mark.parametrize("levels", [[3.0], [5.0, 2.0], [9.0, 4.0, 2.0, 0.5], [999, 499, 249]])
def test_each_frame_gets_the_picture_that_it_gets_alone(levels):
    steps, _ = stages(levels)
    batch = StreamBatch(steps)
    pictures = [batch.push(frame) for frame in [*FRAMES, *[None] * batch.delay]]
    assert pictures[: batch.delay] == [None] * (len(levels) - 1)
    for picture, frame in zip(pictures[batch.delay :], FRAMES, strict=True):
        torch.testing.assert_close(picture, steps.redraw(frame), rtol=1e-12, atol=0)


def test_one_step_is_the_function_at_the_noised_image():
    steps, _ = stages([3.0])
    torch.testing.assert_close(steps.redraw(FRAMES[0]), steps.start(FRAMES[0])[0].tanh() / 4)


def test_a_frame_costs_one_pass_over_all_levels():
    steps, seen = stages([5.0, 2.0, 1.0])
    batch = StreamBatch(steps)
    for frame in [*FRAMES, None, None]:
        batch.push(frame)
    assert seen == [[5], [5, 2], *[[5, 2, 1]] * 4, [2, 1], [1]]
    assert batch.push(None) is None
    assert len(seen) == len(FRAMES) + 2


def test_gaps_are_passed_over_and_come_out_in_their_place():
    steps, seen = stages([5.0, 2.0])
    batch = StreamBatch(steps)
    first, second, third = FRAMES[:3]
    pictures = [batch.push(frame) for frame in (None, first, None, second, third, None, None)]
    assert seen == [[5], [2], [5], [5, 2], [2]]
    assert [picture is None for picture in pictures] == [True, True, False, True, False, False, True]
    for place, frame in ((2, first), (4, second), (5, third)):
        torch.testing.assert_close(pictures[place], steps.redraw(frame))
