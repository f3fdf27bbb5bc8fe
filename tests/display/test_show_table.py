"""A long and wide table is shown whole."""

import pandas as pd

from medsynth_lib.display import tables


def test_no_row_and_no_column_is_left_out(monkeypatch):
    shown = []
    monkeypatch.setattr(tables, "display", lambda table: shown.append((repr(table), table._repr_html_())))
    table = pd.DataFrame({f"column {k}": range(55) for k in range(18)}, [f"row {k}" for k in range(55)])
    tables.show_table(table)
    text, html = shown[0]
    assert all(f"row {k}<" in html for k in range(55)) and all(f"column {k}<" in html for k in range(18))
    assert "..." not in text
