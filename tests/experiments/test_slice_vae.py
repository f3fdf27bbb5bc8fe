"""Lesson 03's comparisons: scores of known slices and of codes, and the sweep of longer trainings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from medsynth_lib.evaluation.distribution import neighbour_correlation
from medsynth_lib.experiments import slice_vae, sweep
from medsynth_lib.models.svae import VAE
from medsynth_lib.settings import SliceVAESettings, load_settings
from medsynth_lib.training.loop import NonFiniteLoss

SETTINGS = SliceVAESettings(size=16, width=16, learning_rate=1e-3, constant_until=0.5, decay_until=1.0)


def test_scores_are_of_the_slices_that_a_model_knows():
    """Against the same computation on slices cut by hand; nan where none of them shows a brain."""
    torch.manual_seed(0)
    settings = replace(SETTINGS, slices="first 8")
    vae = VAE(16, width=16).eval()
    t1, held_out = torch.rand(3, 1, 16, 16, 12), torch.rand(2, 1, 16, 16, 12)  # padded by two slices on either side
    masks = torch.zeros(held_out.shape, dtype=torch.bool)
    masks[:, :, 4:9, 5:11, 4:7] = True  # slices 6 to 8 of the padded volume: 6 and 7 are known
    row, real, drawn = slice_vae.known_slices(vae, settings, t1, held_out, masks)
    assert real.shape == drawn.shape == (2, 16, 16, 8)
    assert torch.equal(real[..., 2:], held_out[:, 0, ..., :6]) and not real[..., :2].any()
    errors = (t1.mean(0) - held_out)[masks & (torch.arange(12) < 6)]
    assert np.isclose(row["mean_head"], -10 * np.log10(errors.square().mean()), atol=1e-4)
    assert np.isclose(row["real_coherence"], neighbour_correlation(real))
    assert np.isclose(row["coherence"], neighbour_correlation(drawn))
    with torch.no_grad():
        again = [
            vae.decoder(vae.encoder(v[0, ..., :6].movedim(-1, 0)[:, None])[0])[:, 0].movedim(0, -1) for v in held_out
        ]
    errors = (torch.stack(again) - held_out[:, 0, ..., :6])[masks[:, 0, ..., :6]]
    assert np.isclose(
        row["psnr"], -10 * np.log10(errors.square().mean()), atol=1e-3
    )  # in evaluation mode slices are alone
    assert 0 < row["floor"] and row["distance"] != row["floor"]
    none = slice_vae.known_slices(vae, settings, t1, held_out, masks & (torch.arange(12) >= 6))[0]
    assert np.isnan(list(none.values())).all() and none.keys() == row.keys()


def test_spread_of_codes_is_of_all_slices():
    torch.manual_seed(0)
    vae, held_out = VAE(16, width=16).eval(), torch.rand(2, 1, 16, 16, 16)
    found = slice_vae.spread_of_codes(vae, replace(SETTINGS, slices="first 4"), held_out)
    with torch.no_grad():
        mean, log_variance = vae.encoder(held_out[:, 0].movedim(-1, 1).flatten(0, 1)[:, None])
    q = Normal(mean, (log_variance / 2).exp())
    assert np.isclose(found["kl"], kl_divergence(q, Normal(0.0, 1.0)).flatten(1).sum(1).mean(), rtol=1e-4)
    assert np.isclose(found["sigma"], q.stddev.mean(), rtol=1e-5)


@pytest.fixture
def free(tmp_path, monkeypatch):
    """A cache and a notebook folder of its own, and trainings and scores that cost nothing: the list of the trainings."""
    trained = []

    def train(settings, train, tune, steps):
        trained.append((settings.loss, settings.slices, steps))
        return None, None

    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path))
    monkeypatch.setenv("MEDSYNTH_NOTEBOOKS", str(tmp_path))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(slice_vae, "open_data", lambda settings: ([SAMPLE], [SAMPLE]))
    monkeypatch.setattr(slice_vae, "train_short", train)
    monkeypatch.setattr(slice_vae, "known_slices", lambda *a: ({"psnr": 1.0}, None, None))
    monkeypatch.setattr(slice_vae, "spread_of_codes", lambda *a: {"kl": 2.0})
    return trained


SAMPLE = {"y": torch.zeros(1, 4, 4, 4), "mask": torch.ones(1, 4, 4, 4, dtype=torch.bool)}


def group_of(settings, case, seed=0):
    """The group of one training."""
    (group,) = [g for g in slice_vae.groups_of(settings) if g.cells[0].name == f"{case}, seed {seed}"]
    return group


def test_a_training_that_diverges_leaves_a_row(free, monkeypatch):
    def diverge(*_):
        raise NonFiniteLoss("loss is nan at step 3")

    monkeypatch.setattr(slice_vae, "train_short", diverge)
    settings = load_settings("03", "lesson")
    group = group_of(settings, "all")
    assert slice_vae.SWEEP.run_group(group) == 1 and slice_vae.SWEEP.run_group(group) == 0
    (row,) = slice_vae.SWEEP.merge("lesson").to_dict("records")
    assert np.isnan(row["psnr"]) and "step 3" in row["note"] and row["case"] == "all"


def test_longer_trainings_are_not_repeated(free, tmp_path):
    settings = load_settings("03", "lesson")
    last = list(slice_vae.cases(settings))[-1]
    for case in (last, "loss reversed", last):
        slice_vae.SWEEP.run_group(group_of(settings, case))
    steps = settings.sweep_steps
    assert free == [("elbo", "spread 8", 8 * steps), ("reversed", "random 16", steps)]  # 8 x 8 slices: all 64
    table = slice_vae.SWEEP.merge("lesson")
    assert table["case"].tolist() == ["loss reversed", last] and list(table["steps"]) == [steps, 8 * steps]
    for path in (tmp_path / "sweeps" / "svae").iterdir():
        path.unlink()
    assert slice_vae.SWEEP.run_group(group_of(settings, last)) == 0  # the committed table counts, too
    other = load_settings("03", "lesson", {"sweep_steps": 3})
    assert len(slice_vae.SWEEP.missing(group_of(other, last).cells)) == 1


def test_a_training_depends_on_its_own_settings():
    """The length of the shipped model's training changes no case; its loss changes all that do not choose another."""
    plain = load_settings("03", "quick")
    longer = load_settings("03", "quick", {"svae": {"steps": 999, "validate_every": 7}, "live_steps": 3})
    other = load_settings("03", "quick", {"svae": {"loss": "reversed"}})
    for case in slice_vae.cases(plain):
        key = slice_vae.cell_key(plain, case, 0)
        assert key == slice_vae.cell_key(longer, case, 0) != slice_vae.cell_key(plain, case, 1)
        assert (key == slice_vae.cell_key(other, case, 0)) == case.startswith("loss ")


def test_the_committed_trainings_are_of_todays_settings():
    """No row twice, none of other settings; what lesson 03 compares over B has every seed."""
    table, settings = sweep.load(slice_vae.TABLE), load_settings("03", "lesson")
    assert not table.duplicated(["case", "seed"]).any()
    keys = [slice_vae.cell_key(settings, case, seed) for case, seed in zip(table["case"], table["seed"], strict=True)]
    assert list(table["key"]) == keys and (table["steps"] == settings.sweep_steps).all()
    seeds = table.groupby("case")["seed"].nunique()
    least, *larger = (b for b in settings.batch_sizes if b < settings.svae.size)
    compared = ["all", f"spread {least}", *(f"{how} {b}" for how in ("first", "spread") for b in larger)]
    assert (seeds[compared] == len(settings.sweep_seeds)).all()
    assert table.set_index("case").loc[compared, ["psnr", "mean_head", "distance", "coherence"]].notna().all().all()
