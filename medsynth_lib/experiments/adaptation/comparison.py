"""What the sweep of lesson 04 says about one direction: tables of means, seeds, paired tests, and shares of the gap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from medsynth_lib.evaluation.statistics import compare
from medsynth_lib.experiments.tables import DASH, dashed

CONTROL, SUPERVISED = "continued training", "supervised, n = 10"  # the two ends of the gap that methods close
IMAGES = {
    "PSNR (dB)": "psnr",
    "scale-free PSNR (dB)": "scale_free_psnr",
    "PSNR in tumour (dB)": "tumour_psnr",
    "PSNR elsewhere (dB)": "healthy_psnr",
    "SSIM": "ssim",
    "NMI": "nmi",
}  # shown -> column of the sweep, without its ending _t or _s
OTHERS = {
    "Dice WT": "dice_wt",
    "Dice TC": "dice_tc",
    "Dice ET": "dice_et",
    "mean Dice": "dice",
    "steps": "steps",
    "PSNR, paper's manner (dB)": "paper_psnr_t",
    "SSIM, paper's manner": "paper_ssim_t",
    "seconds": "seconds",
}
DICE_MARGIN = 0.01  # a method that reaches its goal may cost so much of the mean Dice
LISTED = 5  # names that a sentence lists


def per_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Average one direction's rows of the sweep over test subjects: a row a method and seed."""
    columns = [c for c in rows.columns if pd.api.types.is_numeric_dtype(rows[c]) and c not in ("seed", "steps")]
    return rows.groupby(["method", "seed"])[columns].mean()


def gap_closed(means: pd.DataFrame) -> pd.DataFrame:
    """Give the share of the gap in PSNR from `CONTROL` (0) to `SUPERVISED` (1), seed by seed.

    Args:
        means: as `per_seed` makes them.

    Returns:
        A row a method, a column a seed.
    """
    values = means["psnr_t"].unstack("seed")
    return (values - values.loc[CONTROL]) / (values.loc[SUPERVISED] - values.loc[CONTROL])


@dataclass(frozen=True)
class Comparison:
    """Hold the sweep's rows of one direction and make lesson 04's tables of them."""

    rows: pd.DataFrame  # a row a method, seed and test subject
    methods: tuple[str, ...]  # planned for this direction, in the order of the tables
    apart: frozenset[str]  # methods that have a figure of their own, Fig. 4b

    @classmethod
    def of(
        cls, sweep: pd.DataFrame, source: str, target: str, methods: Iterable[str], apart: Iterable[str] = ()
    ) -> "Comparison":
        """Take the rows of one direction out of a sweep's table; for arguments see the class."""
        rows = sweep[(sweep["source"] == source) & (sweep["target"] == target)]
        return cls(rows, tuple(methods), frozenset(apart))

    @cached_property
    def means(self) -> pd.DataFrame:
        """Means over test subjects, a row a method and seed."""
        return per_seed(self.rows)

    @cached_property
    def method_means(self) -> pd.DataFrame:
        """Means over test subjects and seeds, a row a method."""
        return self.means.groupby("method").mean()

    @cached_property
    def seeds(self) -> pd.Series:
        """How many seeds each method was run with."""
        return self.rows.groupby("method")["seed"].nunique()

    @cached_property
    def complete(self) -> list[str]:
        """Methods with all the seeds that the direction has, in order."""
        return [m for m in self.methods if self.seeds.get(m) == self.seeds.max()]

    @cached_property
    def compared(self) -> list[str]:
        """Methods to hold against continued training in tables and figures, in order."""
        return [m for m in self.complete if m != CONTROL and m not in self.apart]

    @property
    def ready(self) -> bool:
        """Whether continued training and something to compare with it were run with all seeds."""
        return CONTROL in self.complete and bool(self.compared)

    def left_out(self) -> list[str]:
        """List methods that were run, but not with all seeds."""
        return [m for m in self.methods if m in self.seeds.index and m not in self.complete]

    def state(self) -> dict[str, str | int]:
        """Say what was run: how many methods and seeds, on which devices, and when."""
        return {
            "rows": f"{self.rows['method'].nunique()} of {len(self.methods)}",
            "with all seeds": len(self.complete),
            "seeds": self.rows["seed"].nunique(),
            "device": ", ".join(sorted(self.rows["device"].unique())),
            "first and last date": ", ".join(self.rows["date"].agg(["min", "max"]).dropna().unique()),
        }

    def over_control(self, column: str) -> pd.DataFrame:
        """Subtract continued training of the same seed: a row a method, a column a seed."""
        values = self.means[column].unstack("seed")
        return values - values.loc[CONTROL]

    def image_scores(self) -> pd.DataFrame:
        """Tabulate mean image scores against both truths, a row a planned method."""
        mean = self.method_means.reindex(self.methods)
        images = pd.DataFrame(
            {(name, f"Y_{k}"): mean[f"{column}_{k}"] for name, column in IMAGES.items() for k in "ts"}
        )
        images.insert(2, ("between seeds (dB)", "Y_t"), self.means["psnr_t"].groupby("method").std())
        seeds = self.seeds.reindex(mean.index).map("{:.0f}".format).replace("nan", "not run")
        return pd.concat({("seeds", ""): seeds}, axis=1).join(dashed(images))

    def other_scores(self) -> pd.DataFrame:
        """Tabulate Dice, steps, scores in the paper's manner, and seconds: a row a planned method."""
        mean = self.method_means.reindex(self.methods)
        mean["steps"] = (
            self.rows.groupby("method")["steps"].max().astype("Int64")
        )  # stays whole beside a row that lacks it
        return dashed(pd.DataFrame({name: mean[column] for name, column in OTHERS.items()}))

    def tables(self, name: str, paper: pd.DataFrame | None = None) -> list[pd.DataFrame]:
        """Make the tables of the whole comparison.

        Args:
            name: of the direction, for the tables' heads.
            paper: the paper's numbers, a row a method; they join the second table.

        Returns:
            Image scores; then segmentation, time and the paper's numbers. None of them where nothing was run.
        """
        if self.rows.empty:
            return []
        others = self.other_scores()
        if paper is not None:
            others = others.join(dashed(paper)).fillna(DASH)
        return [
            self.image_scores().rename_axis(f"{name} (simulated), images"),
            others.rename_axis(f"{name} (simulated), segmentation and time"),
        ]

    def tested(self, column: str, digits: int, seed: int = 0) -> pd.DataFrame:
        """Test every method against continued training, paired by subject.

        A subject's scores are averaged over seeds first, so that n counts subjects.

        Args:
            column: the score.
            digits: after the point.
            seed: of the bootstrap.

        Returns:
            Text, a row a method: mean difference with its 95 % interval, rank-biserial effect, p after Holm, and the
            differences of the worst and the best seed.
        """
        scores = self.rows.pivot_table(index=["seed", "subject"], columns="method", values=column)
        found = {m: scores[[CONTROL, m]].dropna().groupby("subject").mean() for m in self.compared if m in scores}
        table = compare({m: (p[m], p[CONTROL]) for m, p in found.items() if len(p) > 1}, seed=seed, resamples=1000)
        seeds = self.over_control(column).loc[table.index]
        text = pd.concat([table, seeds.min(axis=1).rename("worst"), seeds.max(axis=1).rename("best")], axis=1)
        text = text.map(f"{{:+.{digits}f}}".format)
        return pd.DataFrame(
            {
                "difference [95 %]": text["difference"] + " [" + text["low"] + ", " + text["high"] + "]",
                "effect": table["effect"].round(2),
                "p, Holm": table["p_holm"].map("{:.2g}".format),
                "worst to best seed": text["worst"] + " to " + text["best"],
            }
        )

    def between(self, method: str, control: str, column: str) -> str | None:
        """Write the worst and the best seed of a method minus a control, else None."""
        if not {method, control} <= set(self.complete):
            return None
        values = self.over_control(column)
        gain = values.loc[method] - values.loc[control]
        return f"{gain.min():+.2f} to {gain.max():+.2f}"

    def gaps_closed(self) -> pd.DataFrame:
        """Give the share of the gap that the physics rows close, and how much lower their Dice is.

        Returns:
            A row a method: "seed 0" and so on, "median", "worst", "Dice lower by". Empty where not run.
        """
        found = [m for m in self.methods if m in self.seeds.index and m.startswith("physics")]
        if not found or not {CONTROL, SUPERVISED} <= set(self.seeds.index):
            return pd.DataFrame()
        dice, closed = self.means["dice"].unstack("seed"), gap_closed(self.means).loc[found]
        table = closed.add_prefix("seed ").assign(median=closed.median(axis=1), worst=closed.min(axis=1))
        return table.assign(**{"Dice lower by": (dice.loc[CONTROL] - dice).mean(axis=1, skipna=False)})

    def score_ranges(self) -> dict[str, float]:
        """Give the ranges of the methods' mean PSNR and Dice, and Spearman's correlation."""
        means = self.method_means.loc[[CONTROL, *self.compared], ["psnr_t", "dice"]]
        columns = (("psnr_t", "PSNR (dB)"), ("dice", "Dice"))
        ends = {f"{name}, {end}": means[column].agg(end) for column, name in columns for end in ("min", "max")}
        return ends | {"Spearman": means.corr("spearman").loc["psnr_t", "dice"]}


def verdict(row: pd.Series, goal: float) -> str:
    """Decide whether a method reaches a goal.

    Args:
        row: of `Comparison.gaps_closed`.
        goal: the share of the gap that the median over seeds must close, 0 to 1.

    Returns:
        "reached", "not reached", or "not decided" with fewer than three seeds or without Dice.
    """
    if row.filter(like="seed ").notna().sum() < 3 or np.isnan(row["Dice lower by"]):
        return "not decided"
    return "reached" if row["median"] >= goal and row["Dice lower by"] <= DICE_MARGIN else "not reached"


def listed(names: Sequence[str]) -> str:
    """List the first names in a sentence and count the others."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more or "no row"
