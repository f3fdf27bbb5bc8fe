"""The sweep of the adaptation study: what a cell depends on, which cells are planned, and what is committed."""

from types import SimpleNamespace

import pytest

from medsynth_lib.experiments import sweep
from medsynth_lib.experiments.adaptation import cells, methods
from medsynth_lib.settings import Lesson04Settings, load_settings

CELL = ("SIMA", "SIMB", 0)


def test_a_cell_depends_on_what_it_uses():
    """The slice-VAE's settings change only rows with a VAE; the number of steps changes all; what is shown changes none."""
    plain = load_settings("04", "quick")
    vae = load_settings("04", "quick", {"svae": {"width": 32}})
    steps = load_settings("04", "quick", {"adaptation": {"steps": 5}})
    shown = load_settings("04", "quick", {"live": []})
    sites = load_settings("04", "quick", {"sites": ["A", "B", "C", "D"]})
    for method, changes in (("s-VAE, KL(P||Q)", True), ("continued training", False)):
        key = cells.cell_key(plain, method, *CELL)
        assert (cells.cell_key(vae, method, *CELL) != key) == changes
        assert cells.cell_key(steps, method, *CELL) != key == cells.cell_key(shown, method, *CELL)
        assert cells.cell_key(sites, method, *CELL) == key  # another site changes nobody's images
        assert key not in (
            cells.cell_key(plain, method, "SIMB", "SIMA", 0),
            cells.cell_key(plain, method, "SIMA", "SIMB", 1),
        )


def test_files_of_cells_differ():
    """KL(P||Q) and KL(Q||P) differ after the signs are taken out, and so do all others."""
    found = [cell for group in cells.groups("lesson") for cell in group.cells]
    assert len({cells.SWEEP.path(cell) for cell in found}) == len(found)


@pytest.mark.parametrize(
    "recipe, paper, control",
    [
        ("paper_text", "s-VAE, paper profile", "continued training at the paper's rate, two updates"),
        ("paper_code", "s-VAE, public code", "public code without its latent loss"),
    ],
)
def test_the_papers_controls_differ_in_their_loss_alone(monkeypatch, recipe, paper, control):
    """Same recipe, rates and pairing (which sets the order of source subjects): a control that draws others would not be one."""
    study = SimpleNamespace(
        settings=Lesson04Settings(),
        sources=SimpleNamespace(encoder=lambda settings: ("encoder", settings)),
        direction=SimpleNamespace(source_t1="t1"),
    )
    calls = []
    monkeypatch.setattr(methods, recipe, lambda study, latent, **changes: calls.append((latent, changes)))
    for name in (paper, control):
        methods.METHODS[name](study)
    (has, changes), (none, same) = calls
    assert has is not None and none is None and changes == same


def test_rows_of_fig_4b_and_the_public_code_are_of_one_direction():
    there, back = methods.planned("SIMA", "SIMB"), methods.planned("SIMB", "SIMA")
    assert there == list(methods.METHODS)
    assert set(there) - set(back) == {*methods.FIG_4B, "s-VAE, public code", "public code without its latent loss"}


def test_the_committed_sweep_is_whole_where_it_claims_to_be():
    """Every planned cell is there under today's settings, with all test subjects and scores, steps, seconds and device."""
    table, settings = sweep.load(cells.TABLE), load_settings("04", "lesson")
    planned = {cell.key: cell.name for group in cells.groups_of(settings) for cell in group.cells}
    found = table.groupby(["method", "source", "target", "seed"])["key"].unique()
    named = {f"{m}, {s} to {t}, seed {k}": list(keys) for (m, s, t, k), keys in found.items()}
    assert named == {name: [key] for key, name in planned.items()}
    counts = table.groupby(["method", "source", "target", "seed"])["subject"].nunique()
    assert (counts == settings.counts["test"]).all()
    scores = [
        "psnr_t",
        "psnr_s",
        "ssim_t",
        "nmi_t",
        "dice",
        "dice_wt",
        "dice_tc",
        "dice_et",
        "wt_ratio",
        "lesion_contrast",
    ]
    assert table[["steps", "seconds", "device", "date", *scores]].notna().all().all()
    assert sweep.committed_file(cells.TABLE).stat().st_size < 2_000_000


def test_rows_are_read_where_they_have_these_settings():
    settings = load_settings("04", "lesson")
    rows = cells.swept(settings, "s-VAE, KL(P||Q)", *CELL)
    assert len(rows) == settings.counts["test"] and set(rows["method"]) == {"s-VAE, KL(P||Q)"}
    other = load_settings("04", "lesson", {"adaptation": {"steps": 7}})
    assert cells.swept(other, "s-VAE, KL(P||Q)", *CELL).empty
