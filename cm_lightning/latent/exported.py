"""Export of a student that was distilled for few steps: for plain diffusers, with its scheduler and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

from cm_lightning.files import replacing
from cm_lightning.latent.few_step import CLASSES, FewStep
from cm_lightning.latent.lora_files import save_kohya, save_lora
from cm_lightning.latent.schedulers import few_step_scheduler
from cm_lightning.quiet import quiet

#: What is written: the whole pipeline, its UNet alone, or an adapter of the UNet.
Part: TypeAlias = Literal["pipeline", "unet", "lora"]

_LOADED = {
    "pipeline": """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("THIS FOLDER")""",
    "unet": """\
from diffusers import DiffusionPipeline, {scheduler}, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("THIS FOLDER")
pipe = DiffusionPipeline.from_pretrained("{base}", unet=unet)
pipe.scheduler = {scheduler}.from_pretrained("THIS FOLDER", subfolder="scheduler")""",
    "lora": """\
from diffusers import DiffusionPipeline, {scheduler}

pipe = DiffusionPipeline.from_pretrained("{base}")
pipe.load_lora_weights("THIS FOLDER")
pipe.scheduler = {scheduler}.from_pretrained("THIS FOLDER", subfolder="scheduler")""",
}
_COMMAND = {
    "pipeline": "cm-lightning sample --pipeline FOLDER",
    "unet": "cm-lightning sample --pipeline {base} --unet FOLDER",
    "lora": "cm-lightning sample --pipeline {base} --lora FOLDER",
}


def export_student(
    folder: Path, pipe: Any, how: FewStep, part: Part, method: str, base: str = "BASE", adapter: str = "lcm"
) -> None:
    """Write a student, and how it is sampled, to a folder that plain diffusers and ``cm-lightning sample`` load.

    The folder of a pipeline is complete. That of a UNet or a LoRA holds the scheduler in ``scheduler/``; a LoRA is also
    written in the Kohya format. ``few_step.json`` and the model card ``README.md`` name steps, scheduler and guidance.

    Args:
        folder: the folder, which is made if it is missing.
        pipe: a pipeline with the student's weights, or its adapter; it gets the student's scheduler.
        how: how the student is sampled.
        part: what to write.
        method: the name of the method, for the card.
        base: the folder or hub name of the base, for the card.
        adapter: name of the adapter in the UNet.

    Raises:
        ConfigError: the UNet does not have such an adapter.
    """
    pipe.scheduler = few_step_scheduler(how, pipe.scheduler.config)
    with quiet():
        if part == "pipeline":  # all parts in the student's precision, because diffusers does not mix precisions
            pipe.to(dtype=pipe.unet.dtype).save_pretrained(folder)
        elif part == "unet":
            pipe.unet.save_pretrained(folder)
        else:
            save_lora(pipe.unet, type(pipe), folder, adapter)
            save_kohya(pipe.unet, folder, adapter)
        if part != "pipeline":
            pipe.scheduler.save_pretrained(folder / "scheduler")
    how.write(folder)
    with replacing(folder / "README.md") as path:
        path.write_text(student_card(how, part, method, base))


def student_card(how: FewStep, part: Part, method: str, base: str = "BASE") -> str:
    """The model card of a student in Markdown, with the header that model hubs read."""
    names = {"scheduler": CLASSES[how.scheduler], "base": base}
    timesteps = f", timesteps={list(how.timesteps)}" if how.timesteps else ""
    steps = f"{how.steps} step{'s' * (how.steps > 1)}"
    known = [f"base_model: {base}"] if "/" in base and not Path(base).exists() else []
    header = ["---", "library_name: diffusers", "pipeline_tag: text-to-image", *known, "---"]
    predicts = "\n\nIts network predicts the clean latent, not the noise." if how.prediction == "sample" else ""
    return (
        "\n".join(header)
        + f"""

# {method}: {steps}

This {_NOUN[part]} of {base} was distilled for {steps}. It is drawn with {how}: set `guidance_scale` to 0, which to
diffusers is the same as 1. Another number of steps, another scheduler, or guidance makes its images worse.{predicts}

```python
{_LOADED[part].format(**names)}
image = pipe("PROMPT", num_inference_steps={how.steps}, guidance_scale=0{timesteps}).images[0]
```

    {_COMMAND[part].format(**names)} --prompt PROMPT
"""
    )


_NOUN = {"pipeline": "student", "unet": "UNet", "lora": "LoRA"}
