"""Checks that tell a student what is missing, without a page of traceback."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class ExerciseNotSolved(AssertionError):
    """An exercise's check did not pass yet."""

    def _render_traceback_(self) -> list[str]:  # IPython shows these lines instead of a traceback
        return [f"{type(self).__name__}: {self}"]


@contextmanager
def check(name: str, hint: str = "") -> Iterator[None]:
    """Run the asserts in the body of `with check(...)`: print a tick, or say what failed.

    Args:
        name: the exercise.
        hint: what to try next.

    Raises: ExerciseNotSolved for any exception in the body.
    """
    try:
        yield
    except Exception as error:
        message = f"{name}: {_what_failed(error)}"
        raise ExerciseNotSolved(message + (f"\nHint: {hint}" if hint else "")) from None
    print(f"✓ {name}")


def _what_failed(error: Exception) -> str:
    """One sentence about an error, with the line of the check where it arose."""
    if isinstance(error, NotImplementedError):
        return "not written yet."
    line = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
    where = f"  (at `{line[0].line}`)" if line[0].line else ""
    if isinstance(error, AssertionError):
        return f"{error}{where}" if str(error) else f"this does not hold yet{where}"
    return f"{type(error).__name__}: {error}{where}"
