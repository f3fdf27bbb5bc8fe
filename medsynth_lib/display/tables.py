"""Show a table whole: a notebook's defaults cut long ones."""

import pandas as pd
from IPython.display import display


def show_table(table: pd.DataFrame) -> None:
    """Display a table of up to 60 rows and 20 columns."""
    with pd.option_context("display.max_rows", 60, "display.max_columns", 20, "display.width", 250):
        display(table)
