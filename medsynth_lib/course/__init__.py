"""What runs the notebooks: profiles, results, exercise checks, the batch runner and its report."""

import contextlib
import sys

# jsonschema, which monai and papermill import, would read the grammar of international web addresses in each of their processes:
# seconds, for a check that nothing here asks for. It does without where the grammar's library is missing.
if "jsonschema" not in sys.modules and "rfc3987_syntax" not in sys.modules:
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # Python reads this as "cannot be imported"
    try:
        with contextlib.suppress(ImportError):
            import jsonschema  # noqa: F401
    finally:
        del sys.modules["rfc3987_syntax"]

from medsynth_lib.course.exercises import check
from medsynth_lib.course.lesson import open_lesson

__all__ = ["check", "open_lesson"]
