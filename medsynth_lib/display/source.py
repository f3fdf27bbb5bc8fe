"""Show library code inside a lesson, so that an equation and its code stand side by side."""

import inspect
from collections.abc import Callable

from IPython.display import Code


def source(*things: Callable | type) -> Code:
    """Show the source of functions or classes, highlighted.

    Args:
        things: functions, methods or classes of the library.

    Returns:
        What a notebook cell displays as code.
    """
    return Code("\n".join(map(inspect.getsource, things)), language="python")
