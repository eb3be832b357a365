"""The quality of samples at each number of network evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info
from rich import get_console
from rich.table import Table
from torch import Tensor

from cm_lightning.cache import cache_folder, is_kept
from cm_lightning.callbacks.progress import tell
from cm_lightning.core.noise import generators
from cm_lightning.data.base import GenerativeDataModule
from cm_lightning.domains import COUNT, SEED, at_least
from cm_lightning.errors import ConfigError
from cm_lightning.metrics.extractor import Extractor
from cm_lightning.metrics.measure import Measure
from cm_lightning.metrics.names import decimals
from cm_lightning.metrics.scores import Scores, load_reference, save_reference, usual_measures
from cm_lightning.modules.base import GenerativeModule

#: The shipped classifier for each subject of images.
_EXTRACTORS = {"digits": "MnistClassifier", "clothes": "FashionClassifier"}


class Quality(Callback):
    """Measures samples against the training images at validation and test; logs the scores and prints a table.

    For each extractor these are the Frechet distance and the kernel distance of its features, their precision and
    recall, and, if it also classifies, the accuracy of the requested labels; for grey images also the shares of
    mid-grey and black pixels. For points, give an :class:`~cm_lightning.metrics.energy.EnergyDistance` as a measure.
    The images of the split ``val`` give the floor: the scores of real images. Samples, reference and floor are divided
    among the ranks; each sample has its own noise, so the scores do not depend on the number of ranks. The extractors
    stay outside the module, and so outside its checkpoints. If weights of an extractor are missing, nothing is
    measured, and a line says where to put them.

    Args:
        nfe: numbers of evaluations of the network for each sample; the names in the log give the actual numbers.
        num_samples: images drawn for each number of evaluations, the classes in turn.
        batch_size: number of images drawn at a time.
        extractor: extractor of the features; both classifiers of digits if None.
        seed: seed of the noise, the same at every call.
        cache: folder in which the statistics of the training images are kept between runs; ``cm_lightning`` in
            ``$XDG_CACHE_HOME`` (``~/.cache``) if None.
        kid: whether to log the kernel distance of the features too, which is unbiased for a few hundred images; like
            precision and recall, it uses at most 5,000.
        measures: what to measure in place of all this, such as a :class:`FeatureScores` for each of several extractors.

    Raises:
        ConfigError: a number is out of range, an extractor is given with measures, measures are missing, or two have
            the same name; at the start of a run, the measures do not fit the data.
    """

    def __init__(
        self,
        nfe: Sequence[int] = (1, 2, 4),
        num_samples: int = 1000,
        batch_size: int = 250,
        extractor: Extractor | None = None,
        seed: int = 0,
        cache: str | None = None,
        kid: bool = True,
        measures: Sequence[Measure] | None = None,
    ) -> None:
        COUNT.check_each(self, nfe=nfe)
        at_least(2).check(self, num_samples=num_samples)
        COUNT.check(self, batch_size=batch_size)
        SEED.check(self, seed=seed)
        self.nfe, self.num_samples, self.batch_size, self.seed = list(nfe), num_samples, batch_size, seed
        if extractor is not None and measures is not None:
            raise ConfigError("Quality: give extractor or measures: in measures a FeatureScores has its own extractor")
        self.measures = usual_measures(extractor, kid) if measures is None else list(measures)
        if not self.measures:
            raise ConfigError("Quality: measures must have at least one: add one, or remove the callback")
        if len({measure.name for measure in self.measures}) < len(self.measures):
            raise ConfigError(f"Quality: measures hold {_repeated(self.measures)} twice: remove one of them")
        self.cache = cache_folder(cache)
        self._scores: Scores | None = None
        self._floor: dict[str, float] = {}
        self._data: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find what is missing before training starts rather than at the first validation."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, GenerativeDataModule):
            raise ConfigError("Quality needs a data module of this suite, for its images: use one, or remove it")
        self._check_shapes(data.image_shape, getattr(pl_module, "image_shape", None))
        self._check_subject(data)
        if trainer.world_size > self.num_samples:
            raise ConfigError(f"Quality: there are fewer samples ({self.num_samples}) than ranks: raise num_samples")
        if stage == "predict":
            return
        if not isinstance(pl_module, GenerativeModule):
            raise ConfigError(f"Quality does not measure a {type(pl_module).__name__}: use PromptGrid for prompts")
        for steps in self.nfe:
            pl_module.default_sigmas(steps)  # raises for a number of steps that its sampler cannot take
        if missing := [lack for measure in self.measures if (lack := measure.missing())]:
            rank_zero_info(f"Quality measures nothing, because weights are missing: {missing[0]}")
            return
        if few := [split for split in ("train", "val") if len(data.split(split)) < 2]:  # type: ignore[arg-type]
            raise ConfigError(f"Quality needs at least 2 images, and {few[0]} has fewer: add images, or remove it")
        if self._scores is None:
            self._scores = Scores(self.measures)

    def _check_shapes(self, data: tuple[int, ...], model: tuple[int, ...] | None) -> None:
        if model is not None and model != tuple(data):
            wanted = ",".join(map(str, data))
            raise ConfigError(
                f"the data has images of shape {tuple(data)}, but the model expects {model}: "
                f"set --model.image_shape=[{wanted}] and the channels of its backbone"
            )
        if wrong := [measure for measure in self.measures if measure.image_shape not in (None, tuple(data))]:
            label, shape = wrong[0].label, wrong[0].image_shape
            raise ConfigError(f"Quality: {label} measures {_kind(shape)} of shape {shape} only: {_remedy(data)}")
        any_images = [measure for measure in self.measures if measure.image_shape is None]
        if any_images and (len(data) != 3 or data[0] not in (1, 3)):
            raise ConfigError(
                f"Quality: {any_images[0].label} measures grey and colour images, not samples of shape {tuple(data)}: "
                f"{_remedy(data)}"
            )

    def _check_subject(self, data: GenerativeDataModule) -> None:
        """Raise ConfigError for a classifier of other images than the data's, whose scores would be meaningless."""
        if data.subject is None:
            return
        for measure in self.measures:
            if measure.subject not in (None, data.subject):
                raise ConfigError(
                    f"Quality: {measure.label} measures {measure.subject}, and {type(data).__name__} has "
                    f"{data.subject}: set --callbacks.quality.extractor {_EXTRACTORS[data.subject]}"
                )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure(trainer, pl_module, "test")

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.sanity_checking or self._scores is None:
            return
        assert isinstance(pl_module, GenerativeModule)
        self._meet_data(trainer, pl_module)
        rows = {"floor": self._floor}
        for steps in self.nfe:
            samples = _Samples(self, trainer, pl_module, steps)
            scores = self._scores(samples)
            rows[f"nfe{samples.evaluations}"] = scores
        for row, values in rows.items():
            pl_module.log_dict({f"{stage}/{name}_{row}": value for name, value in values.items()})
        if trainer.is_global_zero:
            title = f"step {pl_module.trained_steps}: {self.num_samples} samples"
            get_console().print(_table(title, rows))

    def _meet_data(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the reference and the floor once for each data set, because they depend only on the data."""
        data = _fingerprint(trainer, "")
        if data == self._data:
            return
        if self._scores is None or self._data is not None:
            self._scores = Scores(self.measures)
        self._scores.to(pl_module.device)
        self._reference(trainer)
        self._floor = self._scores(_share(trainer, "val"))
        self._data = data

    def _reference(self, trainer: L.Trainer) -> None:
        """Read the statistics of the training images from the cache, or compute them and write them there."""
        compared = {measure: identity for measure in self.measures if (identity := measure.identity())}
        paths = {
            measure: self.cache / f"{measure.name}-{_fingerprint(trainer, identity)}.safetensors"
            for measure, identity in compared.items()
        }
        # the first rank decides: nodes may have separate disks
        known = trainer.strategy.broadcast([is_kept(path) for path in paths.values()])
        new = {measure: path for (measure, path), found in zip(paths.items(), known, strict=True) if not found}
        for measure in paths.keys() - new.keys() if trainer.is_global_zero else ():
            load_reference(measure, paths[measure])
        for images, _ in _share(trainer, "train") if new else ():
            for measure in new:
                measure.add_reference(images)
        for measure, path in new.items():
            save_reference(measure, path, write=trainer.is_global_zero)
            if trainer.is_global_zero and is_kept(path):
                rank_zero_info(f"statistics of the training images: {path}")


class _Samples:
    """A rank's share of the samples, in batches; it counts the network's calls."""

    def __init__(self, quality: Quality, trainer: L.Trainer, pl_module: GenerativeModule, steps: int) -> None:
        self.quality, self.trainer, self.module, self.steps = quality, trainer, pl_module, steps
        self.rows = range(trainer.global_rank, quality.num_samples, trainer.world_size)
        self.calls, self.batches = 0, 0

    @property
    def evaluations(self) -> int:
        """Calls of the network for one sample."""
        return self.calls // self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        labels = self.module.sample_labels(self.quality.num_samples, None)
        hook = self.module.backbone.register_forward_hook(self._count)
        try:
            for first in range(0, len(self.rows), self.quality.batch_size):
                rows = self.rows[first : first + self.quality.batch_size]
                chosen = None if labels is None else labels[list(rows)]
                self.batches += 1
                tell(self.trainer, f"evaluation: {self.steps} step(s)", first, len(self.rows))
                yield self.module.sample(len(rows), self.steps, chosen, generators(self.quality.seed, rows)), chosen
        finally:
            hook.remove()

    def _count(self, *_: Any) -> None:
        self.calls += 1


def _share(trainer: L.Trainer, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    data: GenerativeDataModule = trainer.datamodule  # type: ignore[attr-defined]
    return data.in_order(split, trainer.global_rank, trainer.world_size)


def _fingerprint(trainer: L.Trainer, identity: str) -> str:
    """A digest of a measure, the data set, its length and 64 of its images: it distinguishes the cached statistics."""
    data: GenerativeDataModule = trainer.datamodule  # type: ignore[attr-defined]
    images: Any = data.split("train")
    digest = hashlib.sha256(f"{identity} {len(images)}".encode())
    for i in range(0, len(images), -(-len(images) // 64)):
        digest.update(images[i][0].numpy().tobytes())
    return f"{type(data).__name__}-train-{len(images)}-{digest.hexdigest()[:16]}"


def _kind(shape: Sequence[int] | None) -> str:
    return "points" if shape and len(shape) == 1 else "images"


def _remedy(data: Sequence[int]) -> str:
    """The remedy that names what measures samples of a shape."""
    if len(data) == 1:
        return f"set measures to an EnergyDistance of dim {data[0]}, or remove it"
    if len(data) == 3 and data[0] in (1, 3):
        return "set its extractor to Inception or TorchvisionFeatures"
    return "remove it"


def _repeated(measures: Sequence[Measure]) -> str:
    names = [measure.name for measure in measures]
    return next(name for name in names if names.count(name) > 1)


def _shown(name: str, values: dict[str, float]) -> str:
    return f"{values[name]:.{max(3, decimals(name, values[name]))}f}" if name in values else ""


def _table(title: str, columns: dict[str, dict[str, float]]) -> Table:
    """The scores, one row for each, because more would not fit side by side, and one column for each NFE."""
    table = Table("", *("real held-out" if column == "floor" else column for column in columns), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in dict.fromkeys(name for values in columns.values() for name in values):
        table.add_row(name, *[_shown(name, values) for values in columns.values()])
    return table
