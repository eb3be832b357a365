from __future__ import annotations

import pytest
import torch.distributed as dist

from cm_lightning.callbacks.stopping import Agreement


@pytest.fixture
def ranks():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_what_a_rank_received_is_known_one_call_later(ranks):
    agreement = Agreement()
    assert [agreement(number) for number in (0, 0, 15, 15, 0, 0)] == [0, 0, 0, 15, 15, 0]


def test_an_exchange_that_nobody_waits_for_does_not_disturb_the_next_run(ranks):
    first = Agreement()
    first(2)
    second = Agreement()
    assert (second(0), second(0)) == (0, 0)
