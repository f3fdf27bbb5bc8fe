"""The adaptation study of lesson 04: every row of Table 2, its controls and its rivals, on one pair of sites and one seed.

`METHODS` maps a row's name to a function of a `Study`, which gives a predictor: sample -> synthetic T1 (1, x, y, z). Nothing here
reads a test subject but `evaluate`. A seed varies the training of the source model and of the adaptation; slice-VAE and
segmenter are the same for all.
"""

import copy
import tempfile
import time
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor

from medsynth_lib.data.files.nifti import read_case
from medsynth_lib.data.preparation import appearance
from medsynth_lib.data.preparation.contract import geometry, normalise, prepare
from medsynth_lib.data.simulation import protocol
from medsynth_lib.data.simulation.scanner import SITES, mixed_site, scan
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.evaluation.image import scores
from medsynth_lib.evaluation.segmentation import dice_scores, lesion_contrast
from medsynth_lib.evaluation.synthesis import predict
from medsynth_lib.experiments.lesson_data import volumes
from medsynth_lib.experiments.trained_models import default_fabric, train_or_load
from medsynth_lib.files import cache_folder
from medsynth_lib.models.svae import Encoder
from medsynth_lib.training import adaptation, loop, pix2pix, segmentation
from medsynth_lib.training.adaptation import Adaptation, SourceAndTarget, source_posteriors

VERSION = 2  # raise when a row below changes its mathematics: cells of another version are not reused


class Study:
    """Data, trained models and settings of one direction, e.g. SIMA to SIMB, and one training seed.

    ``frame``: manifest with both sites. ``contract``: of inputs and T1. ``settings``: a Settings of notebook 04.
    ``scanners``: site -> Site (None: the simulated ones). Everything expensive is made on first use and kept.
    """

    def __init__(self, frame, contract, settings, source, target, seed=0, scanners=None):
        self.frame, self.contract, self.settings = frame, contract, settings
        self.source, self.target, self.seed = source, target, seed
        self.scanners = scanners or {f"SIM{name}": site for name, site in SITES.items()}
        self.steps_done, self.seconds = 0, 0.0  # of the last adaptation

    def volumes(self, site, split, labels=True, **changes):
        """Prepared volumes; ``labels`` False leaves the tumour labels unread; ``changes`` to the contract: target=None."""
        frame = self.frame if labels else self.frame.assign(seg="")
        return volumes(frame, replace(self.contract, **changes), site, split).preload()

    @cached_property
    def train(self):
        return self.volumes(self.source, "train")

    @cached_property
    def tune(self):
        return self.volumes(self.source, "tune")

    @property
    def adapt_split(self):
        return "adapt" if (self.frame["split"] == "adapt").any() else "train"

    @cached_property
    def adapt(self):
        """Target inputs without T1 and labels: the adaptation set (of real data without such a split, the training subjects)."""
        return self.volumes(self.target, self.adapt_split, labels=False, target=None)

    @cached_property
    def adapt_pairs(self):
        """The same subjects with T1: for supervised bounds only."""
        return self.volumes(self.target, self.adapt_split, labels=False)

    @cached_property
    def base(self):
        return self.backbone(self.source, intensity=0.0)

    def backbone(self, site, intensity):
        """The generator of a site's trained pix2pix."""
        return self.trained(site, intensity).networks["generator"]

    def trained(self, site, intensity=0.0):
        """A site's trained pix2pix; ``intensity``: probability of the contrast and brightness augmentation."""
        recipe = dict(
            algorithm="pix2pix", **{k: getattr(self.settings, k) for k in pix2pix.RECIPE_KEYS}, seed=self.seed
        )
        train, tune = self.volumes(site, "train"), self.volumes(site, "tune")
        return train_or_load(f"pix2pix-{site}", recipe | {"intensity": intensity}, train, tune)

    def vae(self, **changes):
        """A trained slice-VAE of the source T1 (encoder and recipe); one seed for all studies."""
        recipe = dict(algorithm="svae", **self.settings.svae, seed=0) | changes
        trained = train_or_load(f"svae{recipe['dims']}d-{self.source}", recipe, self.train, self.tune)
        return trained.networks["vae"].encoder, recipe

    @cached_property
    def segmenter(self):
        recipe = dict(algorithm="segmentation", **self.settings.segmenter, seed=0)
        data = [self.volumes(self.source, s, inputs=segmentation.INPUTS, target=None) for s in ("train", "tune")]
        return train_or_load(f"segmenter-{self.source}", recipe, *data).networks["segmenter"]

    # -- training --------------------------------------------------------------------------------------------------------

    def adaptation_recipe(self, **changes):
        s = self.settings
        return dict(profile="fixed", divergence="kl", rho=0.0, prior="bank", learning_rate=s.adapt_rate, constant_until=0.0,
                    decay_until=1.0, final_learning_rate=s.adapt_rate / 10, steps=s.adapt_steps) | changes  # fmt: skip

    def adapted(self, source=None, limit=None, share=1.0, latent=None, **changes):
        """Predictor of the base model after adaptation.

        ``source``: samples in the place of the training set. ``limit``: target volumes used; ``share``: of the usual steps.
        ``latent``: (encoder, recipe, source T1 volumes). ``changes``: to `adaptation_recipe`.
        """
        recipe = self.adaptation_recipe(**changes)
        recipe["steps"] = max(1, round(share * recipe["steps"]))
        encoder = svae_recipe = bank = None
        if latent:
            encoder, svae_recipe, real = latent
            encoder = copy.deepcopy(encoder)
            encoder.train(recipe["profile"] == "paper")
            bank = source_posteriors(encoder, real, svae_recipe)  # in the mode that the adaptation uses
        algorithm = Adaptation(recipe, copy.deepcopy(self.base).train(), encoder, svae_recipe, bank)
        data = SourceAndTarget(source or self.train, self.adapt, recipe["prior"] == "pair", limit)
        self.fit(algorithm, data, SourceAndTarget(self.tune, self.adapt, limit=1), recipe["steps"])
        return self.predictor(algorithm.networks["generator"])

    def finetuned(self, pairs):
        """Predictor of the base model after supervised training on pairs (list of samples), same steps and rates."""
        recipe = self.adaptation_recipe()
        algorithm = Adaptation(recipe, copy.deepcopy(self.base).train(), reads=("x", "y", "mask"))
        self.fit(algorithm, pairs, self.tune, recipe["steps"])
        return self.predictor(algorithm.networks["generator"])

    def fit(self, algorithm, data, tune, steps):
        """Run the course's loop in a fresh folder; adaptation is short, so it is not resumed."""
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            settings = dict(steps=steps, seed=self.seed, validate_every=steps)
            loop.fit(algorithm, data, tune, folder, **settings, fabric=default_fabric())
        self.steps_done, self.seconds = steps, time.perf_counter() - began

    @staticmethod
    def predictor(generator):
        return lambda sample: predict(generator, sample)

    # -- appearance and physics ------------------------------------------------------------------------------------------

    @cached_property
    def source_t1(self):
        return torch.stack([sample["y"] for sample in self.train])

    @cached_property
    def input_quantiles(self):
        """Pooled quantiles of the brain, one row an input: of the source's training set and the target's adaptation set."""
        return tuple(
            appearance.quantiles([s["x"] for s in d], [s["mask"] for s in d]) for d in (self.train, self.adapt)
        )

    def thickened(self, samples):
        """Inputs of source samples with slices as thick as the target's."""
        thickness = [self.scanners[s].fwhm["t2"][2] for s in (self.source, self.target)]
        return [appearance.thicker_slices(s["x"], s["mask"], *thickness, self.contract.spacing[2]) for s in samples]

    @cached_property
    def missing_noise(self):
        """Standard deviation of the noise that thickened source inputs lack beside the target's, (c, 1, 1, 1)."""
        own = [appearance.noise_level(x, s["mask"]) for x, s in zip(self.thickened(self.train), self.train, strict=True)]
        wanted = [appearance.noise_level(s["x"], s["mask"]) for s in self.adapt]
        return np.sqrt(np.maximum(np.mean(wanted, 0) ** 2 - np.mean(own, 0) ** 2, 0))[:, None, None, None]

    def noisy(self, samples):
        """Thickened inputs of source samples with the target's noise."""
        rng, sigma = np.random.default_rng(self.seed), self.missing_noise
        return [
            x + s["mask"] * torch.from_numpy(sigma * rng.standard_normal(x.shape)).float()
            for x, s in zip(self.thickened(samples), samples, strict=True)
        ]

    @cached_property
    def noisy_quantiles(self):
        return appearance.quantiles(self.noisy(self.train), [s["mask"] for s in self.train])

    def styled(self, samples):
        """Source samples with inputs in the target's style: slice thickness, noise, histogram; T1 unchanged."""
        return [
            s | {"x": appearance.apply_curve(x, s["mask"], self.noisy_quantiles, self.input_quantiles[1])}
            for x, s in zip(self.noisy(samples), samples, strict=True)
        ]

    @cached_property
    def target_style(self):
        return self.styled(self.train)

    def scanner_units(self, site, split, modalities, limit=None):
        """Images (c, x, y, z) in scanner units on the lesson's grid, not normalised."""
        rows = self.frame[(self.frame["site"] == site) & (self.frame["split"] == split)].head(limit or len(self.frame))
        chain = geometry(self.contract, modalities)
        cases = (chain(read_case(row, modalities, labels=False)) for _, row in rows.iterrows())
        return [np.stack([case[m].as_tensor()[0].numpy() for m in modalities]) for case in cases]

    @cached_property
    def raw_t1(self):
        return [v[0] for v in self.scanner_units(self.source, "train", ("t1",))]

    @cached_property
    def observations(self):
        """Measured grey-to-white levels of the source's T1, T2 and FLAIR and of the target's T2 and FLAIR, with sequences."""
        out = []
        for site, split, modalities in (
            (self.source, "train", ("t1", "t2", "flair")),
            (self.target, self.adapt_split, ("t2", "flair")),
        ):
            scanner = self.scanners[site]
            found = protocol.measured_levels(self.scanner_units(site, split, modalities, limit=16))
            out += [(scanner.sequences[m], scanner.field, v) for m, v in zip(modalities, found, strict=True)]
        return out

    def curve(self, relaxation=None, fit=True):
        """Source to target T1 look, from literature relaxation values, fitted to the images or (``fit`` False) as they are."""
        relaxation = relaxation or protocol.literature()
        if fit:
            relaxation = protocol.fitted_relaxation(relaxation, self.observations)
        source, target = (self.scanners[s] for s in (self.source, self.target))
        return protocol.protocol_curve(source, target, relaxation, relaxation)

    def mapped_t1(self, curve):
        """The source's training T1 in the target's look, normalised like any T1: (n, 1, x, y, z)."""
        mapped = (torch.from_numpy(protocol.map_t1(t1, curve))[None] for t1 in self.raw_t1)
        return torch.stack([normalise(v, self.contract.normalisation, self.contract.percentiles) for v in mapped])

    def mapped_samples(self, curve, samples):
        """Samples whose T1 is in the target's look."""
        return [s | {"y": y} for s, y in zip(samples, self.mapped_t1(curve), strict=True)]

    def output_curve(self, curve):
        """The curve between *normalised* intensities, for the output of a source model: two lists to interpolate."""
        low, high = self.raw_window
        new_low, new_high = self._window([protocol.map_t1(t1, curve) for t1 in self.raw_t1])
        x = np.linspace(0, 1, 101)
        y = np.interp(low + x * (high - low), *curve)
        return x[None], ((y - new_low) / (new_high - new_low)).clip(0, 1)[None]

    @cached_property
    def raw_window(self):
        """`_window` of the source's T1."""
        return self._window(self.raw_t1)

    def _window(self, images):
        """Mean over subjects of the two percentiles that become 0 and 1, in units of white matter."""
        marks = [np.percentile(t1[t1 > 0], self.contract.percentiles) / protocol.white_level(t1) for t1 in images]
        return np.mean(marks, 0)

    def after_curve(self, make, curve):
        """A predictor whose output goes through a curve."""
        x, y = self.output_curve(curve)
        return lambda sample: appearance.apply_curve(make(sample), sample["mask"], x, y)

    def rescanned(self, *causes, split="test"):
        """The split's subjects, simulated again at the source with these causes of the shift taken from the target.

        Causes as in `scanner.CAUSES`; none gives the source itself. Samples of "x", "y" and "mask", in the manifest's order.
        """
        site = mixed_site(*(self.scanners[s] for s in (self.source, self.target)), *causes)
        return [sample for (sample,) in self.scans([site], split)]

    def scans(self, sites, split="test"):
        """Subject by subject of the split, in the manifest's order: a list of samples, the same person at each site.

        Most of the time goes into the making of a person, and many people at once would not fit into memory.
        """
        sites = list(sites)
        rows = self.frame[(self.frame["site"] == self.source) & (self.frame["split"] == split)]
        for seed in rows["subject"]:
            subject = make_subject(int(seed), tuple(self.settings.shape), self.settings.spacing)
            yield [self._scanned(subject, site) for site in sites]

    def _scanned(self, subject, site):
        images = {
            m: MetaTensor(torch.from_numpy(scan(subject, site, m))[None], affine=torch.from_numpy(subject.affine))
            for m in self.contract.modalities
        }
        return prepare(images, self.contract)

    # -- scores ----------------------------------------------------------------------------------------------------------

    @cached_property
    def test(self):
        """Test samples of the target, the same subjects' T1 at the source, and the four images a segmenter reads."""
        four = self.volumes(self.target, "test", inputs=segmentation.INPUTS, target=None)
        return list(zip(self.volumes(self.target, "test"), self.volumes(self.source, "test"), four, strict=True))

    def evaluate(self, make):
        """Scores of a predictor on the target's test subjects, against both truths: a DataFrame, one row a subject."""
        rows = {}
        for target, source, four in self.test:
            t1, mask = make({k: v for k, v in target.items() if k not in ("y", "seg")}), target["mask"] & source["mask"]
            row = {f"{k}_t": v for k, v in scores(t1, target["y"], mask, target["seg"]).items()}
            row |= {f"{k}_s": v for k, v in scores(t1, source["y"], mask, target["seg"]).items()}
            row |= dice_scores(self.segmenter, four, t1)
            row["lesion_contrast"] = lesion_contrast(t1, target["seg"], target["mask"])
            rows[target["subject"]] = row
        return pd.DataFrame(rows).T.rename_axis("subject")


# -- the rows of the comparison ------------------------------------------------------------------------------------------

SUPERVISED = (10, 40, 100)  # target pairs, as in Table 2
LATENT = dict(profile="fixed", rho=0.3)
PAPER_PROFILE = dict(profile="paper", prior="pair")  # pairs also set which source subjects are drawn
PAPER_RATE = dict(learning_rate=1e-6, final_learning_rate=1e-6)  # of the authors' code; constant


def no_adaptation(study):
    return study.predictor(study.base)


def latent(vae=None, **changes):
    """A row that adds a latent term; ``vae`` "vae3d" or "svae_slice" for another encoder; ``changes`` to the adaptation."""

    def method(study):
        encoder, recipe = study.vae(**(getattr(study.settings, vae) if vae else {}))
        return study.adapted(latent=(encoder, recipe, study.source_t1), **(LATENT | changes))

    return method


def fewer_steps(share):
    """Continued training for a share of the steps: the control of rows that adapt for as long."""
    return lambda study: study.adapted(share=share)


def random_encoder(study):
    """The same loss with an encoder that was never trained: does it matter what the encoder knows?"""
    _, recipe = study.vae()
    torch.manual_seed(study.seed)
    encoder = Encoder(recipe["size"], recipe["dims"], recipe["norm"], recipe["width"])
    with torch.no_grad():  # running statistics of real slices, or evaluation mode would see unnormalised layers
        for y in study.source_t1[:16]:
            adaptation.posterior(encoder, y[None], recipe)
    return study.adapted(latent=(encoder.to(default_fabric().device), recipe, study.source_t1), **LATENT)


def supervised(n):
    """Fine-tuning on n target pairs: what adaptation without target T1 tries to reach."""

    def method(study):
        return study.finetuned([study.adapt_pairs[i] for i in range(min(n, len(study.adapt_pairs)))])

    return method


def oracle(study):
    """Supervised with what nobody has: the target's inputs of ten subjects beside the same subjects' *source* T1."""
    inputs, truth = study.adapt_pairs, study.volumes(study.source, "adapt")
    return study.finetuned([inputs[i] | {"y": truth[i]["y"]} for i in range(min(10, len(inputs)))])


def matched_inputs(study):
    own, wanted = reversed(study.input_quantiles)
    base = no_adaptation(study)
    return lambda s: base(s | {"x": appearance.apply_curve(s["x"], s["mask"], own, wanted)})


def nyul_inputs(study):
    wanted = np.mean([appearance.quantiles([s["x"]], [s["mask"]], appearance.NYUL_LEVELS) for s in study.train], 0)
    base = no_adaptation(study)
    return lambda s: base(s | {"x": appearance.match_volume(s["x"], s["mask"], wanted)})


def matched_outputs(study):
    wanted = appearance.quantiles(study.source_t1, [s["mask"] for s in study.train], appearance.NYUL_LEVELS)
    base = no_adaptation(study)
    return lambda s: appearance.match_volume(base(s), s["mask"], wanted)


def fourier(study):
    """Source inputs with the low-frequency amplitudes of a target subject's, then continued training."""
    source = [
        s | {"x": appearance.fourier_swap(s["x"], study.adapt[i % len(study.adapt)]["x"], s["mask"])}
        for i, s in enumerate(study.train)
    ]
    return study.adapted(source=source)


def gamma_and_bias(study):
    """Continued training on source inputs with random gamma and bias fields, four variants of each subject."""
    rng = np.random.default_rng(study.seed)
    source = [s | {"x": appearance.gamma_and_bias(s["x"], s["mask"], rng)} for _ in range(4) for s in study.train]
    return study.adapted(source=source)


def physics_output(fit=True):
    """No training: the source model's output through the curve between the two T1 looks."""

    def method(study):
        return study.after_curve(no_adaptation(study), study.curve(fit=fit))

    return method


def physics(styled=True, prior=False, fit=True):
    """The capstone: continued training on source T1 in the target's look, on inputs in the target's style.

    ``fit`` False uses the table of relaxation values as it stands. In simulated data that table IS the truth: a bound.
    """

    def method(study):
        curve = study.curve(fit=fit)
        samples = study.mapped_samples(curve, study.target_style if styled else list(study.train))
        options = {}
        if prior:
            encoder, recipe = study.vae()
            real = torch.stack([s["y"] for s in samples])
            options = dict(latent=(encoder, recipe, real), rho=0.1, divergence="wasserstein2")
        return study.adapted(source=samples, **options)

    return method


METHODS = {
    "no adaptation": no_adaptation,
    "no adaptation + augmentation": lambda s: s.predictor(s.backbone(s.source, intensity=0.5)),
    "continued training": lambda s: s.adapted(),
    "continued training at the paper's rate": lambda s: s.adapted(**PAPER_RATE),
    "continued training at the paper's rate, two updates": lambda s: s.adapted(**PAPER_PROFILE, **PAPER_RATE),
    "3D VAE, KL": latent("vae3d"),
    "s-VAE, paper profile": latent(**PAPER_PROFILE, **PAPER_RATE),
    "s-VAE, paper profile at this lesson's rate": latent(**PAPER_PROFILE),
    "s-VAE, KL(P||Q)": latent(),
    "s-VAE, KL(P||Q), rho 0.1": latent(rho=0.1),
    "s-VAE, KL(P||Q), rho 1": latent(rho=1.0),
    "s-VAE, KL(Q||P)": latent(divergence="reverse_kl"),
    "s-VAE, symmetric KL": latent(divergence="symmetric_kl"),
    "s-VAE, Wasserstein": latent(divergence="wasserstein2"),
    "s-VAE, per-slice norm": latent("svae_slice"),
    "s-VAE, random weights": random_encoder,
    "inputs matched": matched_inputs,
    "inputs Nyul": nyul_inputs,
    "outputs matched to source": matched_outputs,
    "Fourier domain adaptation": fourier,
    "gamma + bias augmentation": gamma_and_bias,
    "target-style inputs": lambda s: s.adapted(source=s.target_style),
    "physics on the output": physics_output(),
    "physics on the output, true relaxation": physics_output(fit=False),
    "physics T1": physics(styled=False),
    "physics T1 + target style": physics(),
    "physics T1 + target style, true relaxation": physics(fit=False),
    "physics T1 + target style + s-VAE": physics(prior=True),
    **{f"supervised, n = {n}": supervised(n) for n in SUPERVISED},
    "oracle: target inputs, source T1": oracle,
    "trained on target": lambda s: s.predictor(s.backbone(s.target, intensity=0.0)),
}


VOLUMES_4B = (10, 40, 70, 100)  # Fig. 4b: target volumes, with steps in proportion to them or fixed
FIG_4B = {f"s-VAE, {n} volumes": latent(limit=n) for n in VOLUMES_4B[:-1]}
FIG_4B |= {f"s-VAE, {n} volumes, steps in proportion": latent(limit=n, share=n / 100) for n in VOLUMES_4B[:-1]}
FIG_4B |= {f"continued training, {n} % of the steps": fewer_steps(n / 100) for n in VOLUMES_4B[:-1]}
METHODS |= FIG_4B


def planned(source, target):
    """Names of the rows of a comparison, in order; those of Fig. 4b from SIMA to SIMB alone."""
    return [m for m in METHODS if m not in FIG_4B or (source, target) == ("SIMA", "SIMB")]


def run_cell(study, method):
    """Make and score one row; returns its table with the columns method, source, target, seed, steps, seconds (of adapting)."""
    study.steps_done, study.seconds = 0, 0.0
    table = study.evaluate(METHODS[method](study)).reset_index()
    about = dict(method=method, source=study.source, target=study.target, seed=study.seed)
    return table.assign(**about, steps=study.steps_done, seconds=round(study.seconds, 1))
