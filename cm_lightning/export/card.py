"""The model card of exported weights: what they are, and what is known about their training."""

from __future__ import annotations

from pathlib import Path

from cm_lightning.errors import CmError
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.report.runs import Run, read_runs

_UNKNOWN = "not recorded"


def model_card(module: GenerativeModule, checkpoint: str, steps: int, weights: str, license_name: str, use: str) -> str:
    """The card in Markdown, with the header that model hubs read.

    Args:
        module: the module with the exported weights.
        checkpoint: the source of the weights; data and metrics are read from the files of its run.
        steps: optimizer steps of the weights; 0 if that is not known.
        weights: ``averaged`` or ``raw``.
        license_name: an SPDX identifier, or ``unknown``.
        use: how to load the files.
    """
    run = _run(checkpoint)
    rows = {
        "method": type(module).__name__,
        "network": f"{type(module.backbone).__name__}, {_parameters(module):,} parameters",
        "images": " x ".join(map(str, module.image_shape)),
        "classes": str(module.num_classes or "none"),
        "data": _data(run),
        "training steps": f"{steps:,}" if steps else _UNKNOWN,
        "weights": weights,
        "metrics": _metrics(run),
        "license": license_name,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    header = (
        f"---\nlicense: {license_name}\nlibrary_name: cm_lightning\npipeline_tag: unconditional-image-generation\n---"
    )
    return f"{header}\n\n# {type(module).__name__}\n\n| | |\n|---|---|\n{table}\n\n## Use\n\n{use}\n"


def _run(checkpoint: str) -> Run | None:
    """The run that wrote the checkpoint in RUN/checkpoints/, if its files exist."""
    try:
        return read_runs([Path(checkpoint).parent.parent])[0]
    except (CmError, OSError, IndexError):
        return None


def _parameters(module: GenerativeModule) -> int:
    return sum(p.numel() for p in module.backbone.parameters())


def _data(run: Run | None) -> str:
    data = run.config.get("data") if run else None
    return str(data.get("class_path", _UNKNOWN)).rpartition(".")[2] if isinstance(data, dict) else _UNKNOWN


def _metrics(run: Run | None) -> str:
    """The last value of each metric in the whole run; the weights may be from an earlier step."""
    last = {(score.metric, score.nfe): score for score in run.scores} if run else {}
    shown = [f"{s.metric} {s.value:.4g} at {s.nfe} evaluation(s), {s.stage}, step {s.step:,}" for s in last.values()]
    return "; ".join(shown) or _UNKNOWN
