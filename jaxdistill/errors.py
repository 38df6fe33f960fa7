"""The errors and warnings that jaxdistill raises on purpose: one line each, the cause and then the cure."""


class JaxDistillError(ValueError):
    """Base of every error below, so that one ``except`` catches them all."""


class DatasetError(JaxDistillError):
    """A data set is unknown, unreadable, or lacks what the task needs."""


class InputError(JaxDistillError):
    """An array has the wrong shape, the wrong type, or values that are not finite."""


class PenaltyError(JaxDistillError):
    """A ridge penalty lies outside the admissible interval."""


class RankError(JaxDistillError):
    """Labels or features do not span what exact recovery needs."""


class InverseError(JaxDistillError):
    """A feature map has no closed-form inverse, or a point lies outside its range."""


class ConditioningWarning(UserWarning):
    """Float64 cannot hold what was asked for to more than a few digits; the message names the columns."""


class KernelError(JaxDistillError):
    """A kernel matrix is not positive definite, or a system with it was not solved."""


class ArtifactError(JaxDistillError):
    """A saved set is missing, damaged, unsafe or of a newer format."""


class OutputError(JaxDistillError):
    """A result cannot be written where it was asked for."""


class MemoryBudgetError(JaxDistillError):
    """The task needs more memory than there is; the message names the bytes."""


class ProcessError(JaxDistillError):
    """Another process of the same job is gone, or was given something else."""


class CheckpointError(JaxDistillError):
    """A checkpoint is damaged, or belongs to another run."""


class DivergenceError(JaxDistillError):
    """Training left the finite numbers; ``result`` holds the last good state."""

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class ConvergenceError(JaxDistillError):
    """Exactness was demanded and not reached; ``result`` holds the best that was found."""

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class BudgetError(JaxDistillError):
    """A privacy budget is out of range, spent, or would be spent on something that was not counted."""


class AssumptionError(JaxDistillError):
    """An assumption of a published theorem fails on these data; the message names it."""
