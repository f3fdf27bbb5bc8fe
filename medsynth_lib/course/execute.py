"""papermill, as the runner starts it: the same command line, but the executed notebook is not written at every cell.

Before and after each cell, of text too, papermill writes all pictures so far: seconds in a lesson. Its option against that
(``--no-request-save-on-cell-execute``) would leave nothing of a run whose kernel died.
"""

import sys
import time
from typing import Any

from papermill import cli, engines

from medsynth_lib.processes import end_with

EVERY = 10  # seconds: at most so much is missing from the notebook of a run that was killed


class SeldomSaving(engines.NotebookExecutionManager):
    """Save what papermill tells about its cells at the first one, then now and then, and at the end or a failure."""

    due = 0.0  # monotonic time of the next save, in seconds

    def save(self, **kwargs: Any) -> None:
        """Write the notebook where that is due; papermill calls this before and after each cell."""
        if self.end_time or time.monotonic() >= self.due:
            super().save(**kwargs)
            self.due = time.monotonic() + EVERY


if __name__ == "__main__":
    end_with(int(sys.argv.pop(1)))  # a runner that is killed leaves no notebook that writes on
    engines.NotebookExecutionManager = SeldomSaving
    cli.papermill()
