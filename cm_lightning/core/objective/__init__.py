"""The losses of flow maps: the way from t straight to r must end where the way through q ends.

:class:`Chord` is this condition itself, and :class:`Tangent` its limit q -> t. :class:`Lagrangian` and
:class:`Eulerian` differentiate in r and in t. An objective is pure: its loss is a function of a map, a batch and the
clock, in a Trainer or in your own loop.
"""

from cm_lightning.core.objective.base import Differentiable, FlowMap, Objective
from cm_lightning.core.objective.chord import Chord
from cm_lightning.core.objective.self_distillation import Eulerian, Lagrangian, SelfDistillation
from cm_lightning.core.objective.tangent import Tangent

__all__ = [
    "Chord",
    "Differentiable",
    "Eulerian",
    "FlowMap",
    "Lagrangian",
    "Objective",
    "SelfDistillation",
    "Tangent",
]
