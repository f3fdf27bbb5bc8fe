"""Whether anybody is there to move a slider."""

import os
import sys


def headless() -> bool:
    """True where interactive widgets would be lost: MEDSYNTH_HEADLESS=1, or no live Jupyter kernel."""
    if os.environ.get("MEDSYNTH_HEADLESS") == "1":
        return True
    if "IPython" not in sys.modules:
        return True
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is None
