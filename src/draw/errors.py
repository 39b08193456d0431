"""What a user did wrong, said in one line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can fix. The command line prints its one line and exits with code 2."""


class NonFiniteError(ArithmeticError):
    """A value became infinite or not a number; the message names where."""


def require_kind(name: str, value: object, kind: type) -> None:
    """Check what an argument is.

    Raises:
        UserError: If it is of another type.
    """
    if not isinstance(value, kind):
        a = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise UserError(f"{name} must be {a} {kind.__name__}, got {type(value).__name__}")


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error line about an unknown name: the nearest valid one, or all of them.

    Example:
        >>> nearest("mnits", ["mnist", "cifar10"])
        "did you mean 'mnist'?"
    """
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(choices)}"
