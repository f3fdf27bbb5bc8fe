"""Do the shipped HA-GANs copy? The nearest of as many people whom a model learned from and people whom it never met.

    python benchmarks/hagan_memorisation.py --people 400 --samples 200

Simulated people; of those whom the model learned from the first 400 at most, which lesson 05 looks at. Half of the samples would
have a known person nearest if the model had learned nobody by heart. ``known_if_copies`` is what a model would be expected to
reach that copies all people it learned from, each as often. The error is a binomial standard error, too small where samples
share their nearest.
"""

from types import SimpleNamespace

import torch
from common import arguments, write

from medsynth_lib.data.preparation.cubes import Cubes
from medsynth_lib.evaluation.generation import generate, nearest_neighbours
from medsynth_lib.experiments.hagan import NAMES, cached_cubes, lesson_cubes, trained_hagan
from medsynth_lib.experiments.lesson_data import simulated_volumes
from medsynth_lib.settings import load_settings


def share_nearest_to_known(lesson, modality, people, samples):
    """One row of numbers of an organ's model."""
    settings, (splits, _) = lesson.settings, lesson_cubes(lesson, modality)
    model, known = trained_hagan(lesson, splits), splits["train"]
    manifest = simulated_volumes(settings, modality, dict(adapt=people))  # a split that lessons 05 to 07 do not have
    unknown = cached_cubes(Cubes(manifest, known.contract))
    references = [group[i]["x"] for group in (known, unknown) for i in range(people)]
    codes = torch.randn(samples, settings.hagan["latent"], generator=torch.Generator().manual_seed(lesson.seed))
    found = nearest_neighbours(generate(model.networks, codes), references)
    share, compared = float((found["nearest"] < people).mean()), people / settings.people
    return dict(
        model=model.folder.name,
        people=people,
        samples=samples,
        known=round(share, 3),
        standard_error=round((share * (1 - share) / samples) ** 0.5, 3),
        known_if_copies=round(compared + (1 - compared) / 2, 3),
        mean_distance=round(float(found["distance"].mean()), 4),
        different_nearest=int(found["nearest"].nunique()),
    )


def main():
    args = arguments(__doc__, people=400, samples=200)
    lesson = SimpleNamespace(settings=load_settings("05", "lesson"), data_dir=None, seed=0, notebook="05")
    write(args.out, "hagan_memorisation", [share_nearest_to_known(lesson, m, args.people, args.samples) for m in NAMES])


if __name__ == "__main__":
    main()
