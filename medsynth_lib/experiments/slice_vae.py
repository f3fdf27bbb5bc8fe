"""Lesson 03's comparisons of losses, norms and batch sizes: one short training, its scores, and the same longer with seeds.

    python -m medsynth_lib.course vae-sweep --jobs 2        # hours on a CPU; resumable, a cell a case and a seed

The merged table of profile lesson is `RESULTS` in the notebook folder; not all of its trainings were run.
"""

import hashlib
import json
import tempfile
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from medsynth_lib.data.simulation.dataset import describe
from medsynth_lib.evaluation.distribution import neighbour_correlation, sliced_wasserstein
from medsynth_lib.evaluation.slice_model import SliceModel, decode_volumes, mean_codes, reconstruct
from medsynth_lib.experiments.lesson_data import lesson_contract, lesson_manifest, volumes
from medsynth_lib.experiments.sweep import device_name, in_processes
from medsynth_lib.experiments.trained_models import default_fabric
from medsynth_lib.files import atomic, cache_folder
from medsynth_lib.settings import load_settings, notebooks_folder
from medsynth_lib.training import svae
from medsynth_lib.training.loop import NonFiniteLoss, fit

VERSION = 1  # raise when scores or trainings below change: rows of another version are not reused
RESULTS = "sweeps/svae.csv"  # in the notebook folder
SITE = "SIMA"


def short_recipe(settings, seed, **changes):
    """The recipe of a short training: that of the shipped model with half its width and 16 random slices a step, and changes."""
    width = max(16, settings.svae["width"] // 2)
    return dict(algorithm="svae", **settings.svae, seed=seed) | dict(width=width, slices="random 16") | changes


def train_short(recipe, train, tune, steps):
    """A training from its beginning that is not kept: the VAE, in evaluation mode, and the last row of its history."""
    torch.manual_seed(recipe["seed"])
    algorithm = svae.SliceVAE(recipe)
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(steps=steps, seed=recipe["seed"], validate_every=steps)
        history = fit(algorithm, train, tune, folder, **settings, fabric=default_fabric())
    return algorithm.networks["vae"].eval(), history.iloc[-1]


def psnr_of(mse):
    return -10 * np.log10(float(mse))


def known_slices(vae, recipe, t1, held_out, masks, seed=0):
    """How well a slice-VAE redraws and samples the slices that it was trained on.

    ``t1``, ``held_out``: volumes (n, 1, x, y, z) of training and held-out subjects; ``masks``: brains of the latter, as large.
    Returns scores, real held-out volumes of the known slices and as many sampled ones, (m, ...). Scores: PSNR inside the brain
    and that of the mean training head; correlation of neighbouring slices of samples and of real heads; sliced Wasserstein
    distance of samples to real held-out slices, and its floor, that of real training slices. All nan where no brain is known.
    """
    m, plane = len(held_out), recipe["plane"]
    real, again = reconstruct(vae, held_out, recipe)
    drawn = SliceModel(mean_codes(vae.encoder, t1, recipe)).sample(m, torch.Generator().manual_seed(seed))
    drawn = decode_volumes(vae.decoder, drawn, plane)
    seen, head, inside = (only_known(v, recipe) for v in (t1[:m], t1.mean(0, keepdim=True), masks.float()))
    along = 1 + svae.AXES[plane]  # the slices' axis of volumes (n, x, y, z)
    a, b, c = (v.movedim(along, 1).flatten(0, 1) for v in (real, drawn, seen))
    errors = dict(psnr=again - real, mean_head=head - real)
    row = {name: psnr_of(error[inside > 0].square().mean()) for name, error in errors.items()}
    row |= dict(coherence=neighbour_correlation(drawn, along), real_coherence=neighbour_correlation(real, along))
    row |= dict(distance=sliced_wasserstein(b, a), floor=sliced_wasserstein(c, a))
    return (row if inside.any() else dict.fromkeys(row, np.nan)), real, drawn


def only_known(volumes, recipe):
    """Volumes (n, 1, x, y, z), padded, of the slices that a recipe knows: (n, ...)."""
    return torch.stack([svae.slices_to_volume(svae.images(v[None], recipe), recipe["plane"]) for v in volumes])


# -- the sweep -----------------------------------------------------------------------------------------------------------------


def cases(settings):
    """Name -> (changes to `short_recipe`, how many times the usual steps)."""
    n, sizes = settings.svae["size"], settings.batch_sizes
    found = {f"loss {loss}": (dict(loss=loss), 1) for loss in svae.LOSSES} | {"norm slice": (dict(norm="slice"), 1)}
    for how in ("first", "spread"):
        found |= {f"{how} {b}": (dict(slices=f"{how} {b}"), 1) for b in sizes if b < n}
    least = sizes[0]
    return found | {"all": (dict(slices="all"), 1),
                    f"spread {least}, as many slices": (dict(slices=f"spread {least}"), n // least)}  # fmt: skip


def cell_key(settings, case, seed):
    """Eight hexadecimal digits that change with the data, the training of a case and the mathematics."""
    changes, times = cases(settings)[case]
    recipe = short_recipe(settings, seed, **changes) | dict(steps=times * settings.sweep_steps, validate_every=0)
    data = [settings.counts, settings.size, settings.normalisation]
    data.append(describe(tuple(settings.shape), settings.spacing, True))
    return hashlib.sha256(json.dumps([VERSION, svae.VERSION, data, recipe], sort_keys=True).encode()).hexdigest()[:8]


def cell_path(settings, case, seed):
    """JSON of one training in the cache."""
    return cache_folder("sweeps", "svae") / f"{case.replace(' ', '-')}-{seed}-{cell_key(settings, case, seed)}.json"


def finished(settings, case, seed):
    """The row of a training, from the cache or the committed table; None if it was not run with these settings."""
    path, table = cell_path(settings, case, seed), load()
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    found = table[table["key"] == cell_key(settings, case, seed)]
    return found.iloc[0].to_dict() if len(found) else None


def run_cell(profile, case, seed):
    """Train one case with one seed, unless that was done, and write its scores to the cache; returns whether it was trained."""
    settings = load_settings("03", profile)
    if finished(settings, case, seed):
        return False
    torch.set_num_threads(1)
    lesson = SimpleNamespace(settings=settings, data_dir=None, seed=seed, notebook="03")
    frame = lesson_manifest(lesson)
    contract = lesson_contract(lesson, frame)
    train, tune = (volumes(frame, contract, SITE, split).preload() for split in ("train", "tune"))
    changes, times = cases(settings)[case]
    recipe, steps = short_recipe(settings, seed, **changes), times * settings.sweep_steps
    t1, held_out = (torch.stack([sample["y"] for sample in data]) for data in (train, tune))
    try:
        vae, _ = train_short(recipe, train, tune, steps)
    except NonFiniteLoss as error:  # the same at the next attempt: a row without scores
        scores = dict(psnr=np.nan, note=str(error))
    else:
        scores = known_slices(vae, recipe, t1, held_out, torch.stack([sample["mask"] for sample in tune]))[0]
        scores |= spread_of_codes(vae, recipe, held_out)
    about = dict(case=case, seed=seed, steps=steps, device=device_name(), date=datetime.now(UTC).date().isoformat())
    about["key"] = cell_key(settings, case, seed)
    with atomic(cell_path(settings, case, seed)) as temporary:
        temporary.write_text(json.dumps(about | scores), encoding="utf-8")
    print(f"{case}, seed {seed}: {scores['psnr']:.2f} dB", flush=True)
    return True


@torch.no_grad()
def spread_of_codes(vae, recipe, held_out):
    """KL(q || N(0, I)) a slice in nats and the mean posterior standard deviation, over all slices of held-out heads."""
    device, whole = next(vae.parameters()).device, recipe | dict(slices="all")
    codes = [vae.encoder(svae.images(v[None], whole).to(device)) for v in held_out]
    kl = np.mean([float(svae.gaussian_kl(*q).flatten(1).sum(1).mean()) for q in codes])
    return dict(kl=kl, sigma=np.mean([float((log_variance / 2).exp().mean()) for _, log_variance in codes]))


def merge(settings, profile):
    """Put all finished trainings of these settings, if any, into one table, for `lesson` the committed one; returns it."""
    rows = [finished(settings, case, seed) for case in cases(settings) for seed in settings.sweep_seeds]
    table = pd.DataFrame([row for row in rows if row])
    path = notebooks_folder() / RESULTS if profile == "lesson" else cache_folder("sweeps") / f"svae-{profile}.csv"
    if len(table):
        with atomic(path) as temporary:
            table.to_csv(temporary, index=False, float_format="%.5g")
    return table


def load():
    """The committed table, a row a case and seed; without rows if there is none."""
    path = notebooks_folder() / RESULTS
    return pd.read_csv(path, dtype={"key": str}) if path.exists() else pd.DataFrame(columns=["case", "seed", "steps", "key"])


def main(arguments):
    """Command `vae-sweep`: train what is missing, then merge; 0, or 130 after Ctrl-C (what is done stays)."""
    settings = load_settings("03", arguments.profile)
    cells = [(arguments.profile, case, seed) for seed in settings.sweep_seeds for case in cases(settings)]
    done = in_processes(run_cell, cells, arguments.jobs)
    print(f"{done or 0} trainings; {len(merge(settings, arguments.profile))} rows in the table")
    return 130 if done is None else 0
