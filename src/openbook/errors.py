"""The one error a user meets: what was wrong, where, what was expected, what to do next."""

from collections.abc import Sequence


class OpenBookError(ValueError):
    """Bad input, said once and before anything expensive starts.

    The text reads `WHAT (WHERE): got X, expected Y. NEXT ACTION`; the command line prints it after `error: ` and
    exits with code 2. Parts that are empty are left out.
    """

    def __init__(self, what: str, *, where: object = "", got: object = "", expected: object = "", action: str = ""):
        where, got, expected = str(where), str(got), str(expected)
        text = f"{what} ({where})" if where else what
        facts = [f"got {got}" if got else "", f"expected {expected}" if expected else ""]
        if any(facts):
            text += ": " + ", ".join(fact for fact in facts if fact)
        text = text.rstrip(".") + "."
        super().__init__(f"{text} {action}".rstrip())


class UnknownFormatError(OpenBookError):
    """Data in no format that is known, which may still be data of another kind."""


def raise_all(problems: Sequence[OpenBookError]) -> None:
    """Raise every collected problem as one error, so that a user mends them in one go. Nothing collected: no error."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        raise OpenBookError(f"{len(problems)} problems\n{listed}")
