"""The model of the page, and its teacher."""

from __future__ import annotations

from typing import Any

from cm_lightning.errors import ConfigError
from cm_lightning.serve.drawer import Drawer, Picture
from cm_lightning.serve.samples import SampleDrawer
from cm_lightning.serve.wish import Wish


class Painter:
    """The model of the page, and beside it, if there is one, its teacher.

    Args:
        model: draws in the steps that the user chooses.
        teacher: draws in its own number. A diffusion model without a teacher is its own.

    Raises:
        ConfigError: they draw different images, or of different classes.
    """

    def __init__(self, model: Drawer, teacher: Drawer | None = None) -> None:
        if teacher is None and isinstance(model, SampleDrawer) and model.diffuses:
            teacher = model
        self.model, self.teacher = model, teacher
        if teacher and teacher.kind != model.kind:
            raise ConfigError(
                f"--teacher {teacher.name} draws {teacher.kind}, but {model.name} draws {model.kind}: "
                "give models of one kind"
            )

    def draw(self, wish: Wish) -> Picture:
        """Draw a picture.

        Raises:
            ConfigError: the wish does not fit the model.
        """
        if not wish.teacher:
            return self.model.draw(wish, wish.steps)
        if self.teacher is None:
            raise ConfigError("a teacher is missing: start the server with --teacher")
        return self.teacher.draw(self.teacher.as_teacher(wish), None)

    def describe(self) -> dict[str, Any]:
        """What the page must know, as JSON."""
        controls = self.model.controls()
        if self.teacher is self.model:
            controls["default_steps"] = controls["steps"][0]
        teacher = self.teacher.name if self.teacher else None
        return {"name": self.model.name, "shape": self.model.shape, **controls, "teacher": teacher}
