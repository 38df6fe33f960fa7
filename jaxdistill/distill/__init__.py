"""Constructions of distilled sets, one file a section of the method.

Knows models and sets; no file and no command. ``exact``, ``reduced_rank``, ``labels`` and ``realistic`` are
pure functions of arrays; ``plan`` chooses among them, ``scaling`` and ``reference`` prepare, ``build`` hands
over the set. Begin with :mod:`jaxdistill.distill.plan`, then :func:`jaxdistill.distill.build.distill`.
"""

from jaxdistill.distill.build import distill
from jaxdistill.distill.plan import Construction, LabelKind, Plan, plan_distillation

__all__ = ["Construction", "LabelKind", "Plan", "distill", "plan_distillation"]
