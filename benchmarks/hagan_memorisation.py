"""Do the shipped HA-GANs copy? The nearest of as many subjects that a model learned from as of new ones.

    python benchmarks/hagan_memorisation.py --subjects 400 --samples 200

Subjects are simulated. Of those that the model learned from, the first 400 at most take part, which lesson 05 looks at. Without
memorisation half of the samples have a known subject nearest. ``known_if_copies`` is the share of a model that copies all
subjects it learned from, each as often. The error is a binomial standard error, too small where samples share their nearest.
"""

from types import SimpleNamespace

import torch
from common import arguments, write

from medsynth_lib.data.preparation.cubes import Cubes
from medsynth_lib.evaluation.generation import generate, nearest_neighbours
from medsynth_lib.experiments.hagan import NAMES, cached_cubes, lesson_cubes, trained_hagan
from medsynth_lib.experiments.lesson_data import simulated_volumes
from medsynth_lib.settings import load_settings


def share_nearest_to_known(lesson, modality, subjects, samples):
    """One row of numbers of an organ's model."""
    settings, (splits, _) = lesson.settings, lesson_cubes(lesson, modality)
    model, known = trained_hagan(lesson, splits), splits["train"]
    manifest = simulated_volumes(settings, modality, dict(adapt=subjects))  # a split that lessons 05 to 07 do not have
    unknown = cached_cubes(Cubes(manifest, known.contract))
    references = [group[i]["x"] for group in (known, unknown) for i in range(subjects)]
    codes = torch.randn(samples, settings.hagan.latent, generator=torch.Generator().manual_seed(lesson.seed))
    found = nearest_neighbours(generate(model.networks, codes), references)
    share, compared = float((found["nearest"] < subjects).mean()), subjects / settings.training_subjects
    return dict(
        model=model.folder.name,
        people=subjects,
        samples=samples,
        known=round(share, 3),
        standard_error=round((share * (1 - share) / samples) ** 0.5, 3),
        known_if_copies=round(compared + (1 - compared) / 2, 3),
        mean_distance=round(float(found["distance"].mean()), 4),
        different_nearest=int(found["nearest"].nunique()),
    )


def main():
    args = arguments(__doc__, subjects=400, samples=200)
    lesson = SimpleNamespace(settings=load_settings("05", "lesson"), data_dir=None, seed=0, notebook="05")
    write(
        args.out, "hagan_memorisation", [share_nearest_to_known(lesson, m, args.subjects, args.samples) for m in NAMES]
    )


if __name__ == "__main__":
    main()
