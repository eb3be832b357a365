"""Imports every callback, so that the command line knows each by its short name."""

from cm_lightning.callbacks.ema import EMA
from cm_lightning.callbacks.export import Export
from cm_lightning.callbacks.progress import RunProgress
from cm_lightning.callbacks.prompt_grid import PromptGrid
from cm_lightning.callbacks.quality import Quality
from cm_lightning.callbacks.sample_grid import SampleGrid
from cm_lightning.callbacks.save_last import SaveLast
from cm_lightning.callbacks.throughput import Throughput
from cm_lightning.metrics.extractor import Inception, MnistJudge
from cm_lightning.metrics.features import DINOv2, TorchvisionFeatures

__all__ = [
    "EMA",
    "DINOv2",
    "Export",
    "Inception",
    "MnistJudge",
    "PromptGrid",
    "Quality",
    "RunProgress",
    "SampleGrid",
    "SaveLast",
    "Throughput",
    "TorchvisionFeatures",
]
