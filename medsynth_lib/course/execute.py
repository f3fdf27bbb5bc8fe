"""papermill, as the runner starts it: the same command line, but the executed notebook is not written at every cell.

Before and after each cell, of text too, papermill writes all pictures so far: seconds in a lesson. Its option against that
(``--no-request-save-on-cell-execute``) would leave nothing of a run whose kernel died.
"""

import time

from papermill import cli, engines

EVERY = 10  # seconds: at most so much is missing from the notebook of a run that was killed


class SeldomSaving(engines.NotebookExecutionManager):
    """What papermill tells about its cells; it saves at the first, then now and then, and at the end, which may be a failure."""

    due = 0.0

    def save(self, **kwargs):
        if self.end_time or time.monotonic() >= self.due:
            super().save(**kwargs)
            self.due = time.monotonic() + EVERY


if __name__ == "__main__":
    engines.NotebookExecutionManager = SeldomSaving
    cli.papermill()
