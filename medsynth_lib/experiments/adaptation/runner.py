"""Run a row of the comparison and score it on the target's test subjects."""

import pandas as pd

from medsynth_lib.evaluation.image import scores
from medsynth_lib.evaluation.segmentation import dice_scores, lesion_contrast
from medsynth_lib.experiments.adaptation.methods import METHODS
from medsynth_lib.experiments.adaptation.study import Predictor, Study

TRUTH = ("y", "seg")  # what a predictor must not see of a test subject


def evaluate(study: Study, predictor: Predictor) -> pd.DataFrame:
    """Score a predictor against the T1 of both sites.

    Args:
        study: whose test subjects and segmenter are used.
        predictor: it is given samples without T1 and labels.

    Returns:
        A row a test subject: image scores to the target's T1 (ending _t) and to the source's (_s), Dice, lesion contrast.
    """
    rows = {}
    for target, source, four in study.direction.test:
        t1 = predictor({k: v for k, v in target.items() if k not in TRUTH})
        mask = target["mask"] & source["mask"]
        row = {f"{k}_t": v for k, v in scores(t1, target["y"], mask, target["seg"]).items()}
        row |= {f"{k}_s": v for k, v in scores(t1, source["y"], mask, target["seg"]).items()}
        row |= dice_scores(study.sources.segmenter, four, t1)
        row["lesion_contrast"] = lesion_contrast(t1, target["seg"], target["mask"])
        rows[target["subject"]] = row
    return pd.DataFrame(rows).T.rename_axis("subject")


def run_cell(study: Study, method: str) -> pd.DataFrame:
    """Make and score one row; the columns steps and seconds are those of its adaptation."""
    predictor = METHODS[method](study)
    table = evaluate(study, predictor).reset_index()
    about = dict(method=method, source=study.direction.source, target=study.direction.target, seed=study.seed)
    return table.assign(**about, steps=predictor.steps, seconds=round(predictor.seconds, 1))
