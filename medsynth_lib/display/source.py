"""Show library code inside a lesson, so that an equation and its code stand side by side."""

import inspect

from IPython.display import Code


def source(thing):
    """The source of a function or class of the library, highlighted."""
    return Code(inspect.getsource(thing), language="python")
