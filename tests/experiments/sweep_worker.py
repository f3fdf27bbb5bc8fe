"""Run by test_sweep in a process that is killed: a sweep whose third cell stops in the middle of writing its table."""

import sys
import time
from pathlib import Path

import pandas as pd
import toy_study


def main(started):
    class Endless(pd.DataFrame):
        """A table whose writing never ends."""

        def assign(self, **columns):
            return Endless(super().assign(**columns))

        def to_csv(self, path, **options):
            Path(path).write_text("subject,sco")
            Path(started).touch()
            time.sleep(600)

    run = toy_study.run_cell

    def run_cell(shared, name):
        table = run(shared, name)
        return Endless(table) if name == toy_study.METHODS[2] else table

    toy_study.run_cell = run_cell
    toy_study.SWEEP.run_group(toy_study.group(0, toy_study.METHODS))


if __name__ == "__main__":
    main(sys.argv[1])
