"""Show library code inside a lesson, so that an equation and its code stand side by side."""

import inspect
from collections.abc import Callable

from IPython.display import Code


def source(thing: Callable | type) -> Code:
    """Show the source of a function or class, highlighted.

    Args:
        thing: a function, method or class of the library.

    Returns:
        What a notebook cell displays as code.
    """
    return Code(inspect.getsource(thing), language="python")
