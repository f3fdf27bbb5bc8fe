"""What runs the notebooks: profiles, results, exercise checks, the batch runner and its report."""

from .exercises import check
from .lesson import open_lesson

__all__ = ["check", "open_lesson"]
