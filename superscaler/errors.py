"""Every error superscaler raises for a user's mistake.

    SuperscalerError(ValueError)
    ├── TraceError        the model cannot be captured, or an operator has no rule
    ├── PlanError         a plan that cannot be: cuts, places or orders that make no sense
    ├── VerificationError a plan or program that would compute something else, or hang
    ├── ProfileError      a machine that cannot be measured as asked
    ├── BuildError        a build folder, data file or checkpoint that does not fit
    ├── SizeError         inputs whose sizes a graph or build with sizes that vary does not allow
    └── ServingError      limits or a policy that no engine could serve with
        └── RequestError  a request that could never be served as it is asked

A message names the thing, the place in the user's code, and the remedy, in that order.
Programmer errors are assertions, never one of these.
"""


class SuperscalerError(ValueError):
    """Base of every error raised for a user's mistake; ``str(error)`` is the whole message.

    Args:
        what: What is wrong, naming the operator, parameter, file or option.
        where: The user's source line (``gpt.py:42``), where one is known.
        remedy: What the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        """Join the parts into one message."""
        self.what, self.where, self.remedy = what, where, remedy
        lines = [what]
        if where:
            lines.append(f"  at: {where}")
        if remedy:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))


class TraceError(SuperscalerError):
    """The model cannot be captured as one graph, or holds an operator without a rule."""


class PlanError(SuperscalerError):
    """The plan asks for something that cannot be."""


class VerificationError(SuperscalerError):
    """A plan or program would read what was not written, compute something else, or hang."""


class ProfileError(SuperscalerError):
    """The machine at hand cannot be measured as asked."""


class BuildError(SuperscalerError):
    """A build folder, data file or checkpoint is missing, damaged, or made for something else."""


class SizeError(SuperscalerError):
    """Inputs are of sizes that a graph or build with sizes that vary does not allow."""


class ServingError(SuperscalerError):
    """An engine is asked to serve in a way that cannot be: limits, a policy or a cache that make no sense."""


class RequestError(ServingError):
    """A request is malformed, or could never be served here; the engine goes on.

    Args:
        what: What is wrong.
        where: The user's source line, where one is known.
        remedy: What the user can do about it.
        param: The name of the one value that is wrong, where it is one.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", param: str | None = None) -> None:
        """Keep the name."""
        self.param = param
        super().__init__(what, where=where, remedy=remedy)
