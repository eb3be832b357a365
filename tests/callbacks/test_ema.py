import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cm_lightning.callbacks.ema import EMA
from cm_lightning.checkpoint import read_checkpoint, weights
from cm_lightning.errors import CheckpointError, ConfigError
from tests.helpers import module, points, trainer

NAME = "head.bias"


class Record(L.Callback):
    """The weights after each optimizer step, and those that validation sees."""

    def __init__(self):
        self.after, self.validated, self.steps = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step not in self.steps:
            self.steps.append(trainer.global_step)
            self.after.append(pl_module.backbone.head.bias.detach().clone())

    def on_validation_epoch_end(self, trainer, pl_module):
        self.validated.append(pl_module.backbone.head.bias.detach().clone())


def average_by_hand(start, weights, decays):
    for w, d in zip(weights, decays, strict=True):
        start = d * start + (1 - d) * w
    return start


@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_closed_form(tmp_path, ramp, accumulate):
    m, ema, record = module(), EMA(0.5, ramp=ramp), Record()
    start = m.backbone.head.bias.detach().clone()
    trainer(tmp_path, callbacks=[ema, record], accumulate_grad_batches=accumulate).fit(m, points(256))
    decays = [min(0.5, (1 + k) / (10 + k)) if ramp else 0.5 for k in range(1, 6)]
    after = record.after if accumulate == 1 else record.after[-5:]
    torch.testing.assert_close(ema.average[NAME], average_by_hand(start, after, decays))


def test_validation_sees_the_average_and_training_continues_with_its_own_weights(tmp_path):
    def run(callbacks):
        m = module()
        t = trainer(tmp_path, callbacks=callbacks, max_steps=8, val_check_interval=4, check_val_every_n_epoch=None)
        t.fit(m, points(), points())
        return m, t

    ema, record = EMA(0.9), Record()
    m, _ = run([ema, record])
    plain, _ = run([])
    torch.testing.assert_close(m.backbone.state_dict(), plain.backbone.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(record.validated[-1], ema.average[NAME], rtol=0, atol=0)
    assert not torch.equal(record.validated[-1], record.after[-1])


def test_checkpoints_hold_both_and_every_way_of_testing_uses_the_average(tmp_path):
    class Seen(L.Callback):
        def on_test_epoch_end(self, trainer, pl_module):
            self.bias = pl_module.backbone.head.bias.detach().clone()

    seen, ema = Seen(), EMA(0.9)
    saving = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=1)
    validated = ModelCheckpoint(tmp_path / "val", filename="val", monitor="val/loss")
    t = trainer(tmp_path, callbacks=[ema, seen, saving, validated], enable_checkpointing=True, max_steps=4)
    m = module()
    t.fit(m, points(), points())
    raw, average = m.backbone.state_dict()[NAME].clone(), ema.average[NAME].clone()
    for file in ("last.ckpt", "val/val.ckpt"):  # the second is saved while validation ends
        checkpoint = read_checkpoint(tmp_path / file)
        assert torch.equal(weights(checkpoint, "raw")[NAME], raw)
        assert torch.equal(weights(checkpoint, "ema")[NAME], average)
        assert not torch.equal(raw, average)

    t.test(m, points(), verbose=False)
    assert torch.equal(seen.bias, average)
    t.test(m, points(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True, verbose=False)
    assert torch.equal(seen.bias, average)
    assert torch.equal(m.backbone.head.bias, raw)
    fresh, again = module(), Seen()
    trainer(tmp_path, callbacks=[EMA(0.9), again]).test(
        fresh, points(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True, verbose=False
    )
    assert torch.equal(again.bias, average)


def test_several_decays(tmp_path):
    fast, slow, record = EMA(0.1, ramp=False), EMA(0.9, evaluate=False, ramp=False), Record()
    m = module()
    start = m.backbone.head.bias.detach().clone()
    t = trainer(tmp_path, callbacks=[fast, slow, record], val_check_interval=4, max_steps=4)
    t.fit(m, points(), points())
    torch.testing.assert_close(fast.average[NAME], average_by_hand(start, record.after, [0.1] * 4))
    torch.testing.assert_close(slow.average[NAME], average_by_hand(start, record.after, [0.9] * 4))
    assert torch.equal(record.validated[-1], fast.average[NAME])
    t.save_checkpoint(tmp_path / "two.ckpt")
    assert torch.equal(weights(read_checkpoint(tmp_path / "two.ckpt"))[NAME], fast.average[NAME])
    with pytest.raises(ConfigError, match="evaluate: false"):
        trainer(tmp_path, callbacks=[EMA(0.1), EMA(0.9)]).fit(module(), points())


def test_an_exception_during_validation_gives_the_weights_back(tmp_path):
    class Fail(L.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            raise RuntimeError("boom")

    m, record = module(), Record()
    t = trainer(tmp_path, callbacks=[EMA(0.9), record, Fail()], val_check_interval=4, max_steps=4)
    with pytest.raises(RuntimeError, match="boom"):
        t.fit(m, points(), points())
    assert torch.equal(m.backbone.head.bias, record.after[-1])


def test_buffers_are_copied_not_averaged():
    net, ema = torch.nn.BatchNorm1d(2), EMA(0.9, ramp=False)
    ema.average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net(torch.randn(8, 2))
    ema.update(net, 1)
    assert ema.average["num_batches_tracked"].item() == 1
    assert torch.equal(ema.average["running_mean"], net.running_mean)


def test_unsuitable_options_and_checkpoints(tmp_path):
    with pytest.raises(ConfigError, match="decay"):
        EMA(1.0)
    with pytest.raises(ConfigError, match="does not have a submodule 'bakbone'"):
        trainer(tmp_path, callbacks=[EMA(attribute="bakbone")]).fit(module(), points())
    ema = EMA()
    ema.load_state_dict({"average": {"other": torch.zeros(1)}})
    with pytest.raises(CheckpointError, match="another backbone"):
        trainer(tmp_path, callbacks=[ema]).fit(module(), points())


def test_another_decay_finds_the_average_of_a_checkpoint_and_a_missing_one_is_told(tmp_path, recwarn):
    t = trainer(tmp_path, callbacks=[EMA(0.9)])
    t.fit(module(), points())
    t.save_checkpoint(tmp_path / "a.ckpt")
    other = EMA(0.5)
    trainer(tmp_path, callbacks=[other]).test(
        module(), points(), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True, verbose=False
    )
    torch.testing.assert_close(other.average, weights(read_checkpoint(tmp_path / "a.ckpt")), rtol=0, atol=0)
    trainer(tmp_path, callbacks=[EMA(0.5)]).test(module(), points(), verbose=False)
    assert any("raw weights are evaluated" in str(warning.message) for warning in recwarn)


def test_training_continues_after_a_test(tmp_path):
    m, ema = module(), EMA(0.9)
    t = trainer(tmp_path, callbacks=[ema], max_steps=2)
    t.fit(m, points())
    t.test(m, points(), verbose=False)
    t.fit_loop.epoch_loop.max_steps = 4
    t.fit(m, points())
    assert t.global_step == 4


def test_tied_weights_are_averaged_and_exchanged_once(tmp_path):
    m, ema = module(), EMA(0.5, ramp=False)
    m.backbone.layers[1].weight = m.backbone.layers[0].weight
    trainer(tmp_path, callbacks=[ema]).fit(m, points())
    raw = m.backbone.layers[0].weight.detach().clone()
    assert torch.equal(ema.average["layers.0.weight"], ema.average["layers.1.weight"])
    average = ema.average["layers.0.weight"].clone()
    with ema.applied(m):
        assert torch.equal(m.backbone.layers[1].weight, average)
    assert torch.equal(m.backbone.layers[1].weight, raw)
    assert torch.equal(ema.average["layers.1.weight"], average)


@pytest.mark.parametrize(("decay", "evaluate", "found"), [(0.5, True, 0.9), (0.5, False, 0.99), (0.9995, False, 0.999)])
def test_another_decay_takes_the_nearest_average_of_its_use(decay, evaluate, found):
    states = [EMA(0.9), EMA(0.99, evaluate=False), EMA(0.999, evaluate=False)]
    for ema in states:
        ema.average = {"weight": torch.full((1,), ema.decay)}
    checkpoint = {"callbacks": {ema.state_key: ema.state_dict() for ema in states}}
    ema = EMA(decay, evaluate=evaluate)
    ema.on_load_checkpoint(None, None, checkpoint)
    assert ema.average["weight"].item() == pytest.approx(found)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_an_average_of_another_precision_continues_in_that_of_the_network(tmp_path, precision):
    t = trainer(tmp_path, callbacks=[EMA(0.9)], max_steps=2)
    t.fit(module(), points())
    t.save_checkpoint(tmp_path / "a.ckpt")
    ema, m = EMA(0.9), module()
    trainer(tmp_path, callbacks=[ema], max_steps=4, precision=precision).fit(
        m, points(), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True
    )
    assert ema.average[NAME].dtype == m.backbone.head.bias.dtype
