"""Constructions of distilled sets, one file a section of the method.

``exact``, ``reduced_rank``, ``labels`` and ``realistic`` are pure functions of arrays; ``plan``
chooses among them, ``scaling`` and ``reference`` prepare, and ``build`` hands over the set.
"""

from jaxdistill.distill.build import distill
from jaxdistill.distill.plan import Construction, LabelKind, Plan, plan_distillation

__all__ = ["Construction", "LabelKind", "Plan", "distill", "plan_distillation"]
