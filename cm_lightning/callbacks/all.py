"""Imports every callback, so that the command line knows each by its short name."""

from cm_lightning.callbacks.digit_quality import DigitQuality
from cm_lightning.callbacks.ema import EMA
from cm_lightning.callbacks.progress import RunProgress
from cm_lightning.callbacks.sample_grid import SampleGrid
from cm_lightning.callbacks.throughput import Throughput

__all__ = ["EMA", "DigitQuality", "RunProgress", "SampleGrid", "Throughput"]
