"""papermill, as the runner starts it: the same command line, but the executed notebook is not written at every cell.

papermill has no option for it: before and after each cell, of text too, it writes all pictures so far, seconds in a lesson.
"""

import time

from papermill import cli, engines

EVERY = 10  # seconds: at most so much is missing from the notebook of a run that was killed


class SeldomSaving(engines.NotebookExecutionManager):
    """What papermill tells about its cells; it saves at the first, then now and then, and at the end, which may be a failure."""

    due = 0.0

    def save(self, **kwargs):
        self.nb = kwargs.get("nb") or self.nb
        if self.end_time or time.monotonic() >= self.due:
            super().save()
            self.due = time.monotonic() + EVERY


if __name__ == "__main__":
    engines.NotebookExecutionManager = SeldomSaving
    cli.papermill()
