"""pix2pix, one adversarial training step: seconds of this library's form beside the public implementation's.

    git clone https://github.com/WinstonHuTiger/2D_VAE_UDA_for_3D_sythesis DIR
    python benchmarks/pix2pix_step.py --reference DIR
    python benchmarks/pix2pix_step.py                     # this library's form alone

The forms take turns in one process; the first round warms up. Public width, batch 1, one CPU thread. CPU seconds (user and
system, of this process) hardly depend on what else runs; wall seconds do. The public step is its own method
``optimize_parameters``, called as it is: only its viewer and its Bayesian layers, which the step does not use, are left out.
"""

import resource
import statistics
import sys
import time
import types
import warnings
from pathlib import Path

import torch
from common import arguments, write

from medsynth_lib.settings import Pix2PixSettings
from medsynth_lib.training.pix2pix import Pix2Pix

LEFT_OUT = {  # modules of the public code that need packages of their own -> names that are imported from them
    "util.visualizer": ("Visualizer",),
    "util.util": ("colorFaderTensor", "load_loss_log", "load_val_log"),
    "models.bayesian": ("BayesianConv2d", "BayesianConv3d", "BayesianConvTranspose2d", "BayesianConvTranspose3d"),
}
OPTIONS = dict(
    gpu_ids=[], isTrain=True, checkpoints_dir="", name="", preprocess="none", amp=False, direction="AtoB", bayesian=False,
    dataset_mode="brain_3D", netVae_path=None, freeze_sit_layers_in=False, input_nc=2, output_nc=1, netG="sit",
    netD="n_layers", n_layers_D=1, normG="instance", normD="instance", no_dropout=True, init_type="kaiming", init_gain=0.02,
    no_antialias=False, no_antialias_up=False, gan_mode="lsgan", lambda_L1=100.0, lambda_perceptual=1.5, glr=1e-4, dlr=1e-4,
    beta1=0.5, beta2=0.999,
)  # fmt: skip


class Ours:
    """The library's step, loss "gan"."""

    def __init__(self, width):
        self.model = Pix2Pix(Pix2PixSettings(width=width, loss="gan"))

    def iterate(self, x, y):
        self.model.step({"x": x, "y": y})


class Reference:
    """The public model, with the options of its README."""

    def __init__(self, folder, width):
        for name, imported in LEFT_OUT.items():
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(dict.fromkeys(imported))
        sys.path.insert(0, str(Path(folder, "3D-MRI") if Path(folder, "3D-MRI").exists() else folder))
        networks = __import__("models.networks", fromlist=["setDimensions"])
        networks.setDimensions(3)
        options = types.SimpleNamespace(**OPTIONS, ngf=width, ndf=width)
        self.model = __import__("models.pix2pix_model", fromlist=["Pix2PixModel"]).Pix2PixModel(options)
        options.gpu_ids = ["cpu"]  # where its feature-matching loss is made

    def iterate(self, x, y):
        self.model.set_input(dict(A=x, B=y, A_paths="", B_paths=""))
        self.model.optimize_parameters()


def measure(iterate, x, y):
    """CPU and wall seconds of one step."""
    began = time.process_time(), time.perf_counter()
    iterate(x, y)
    return time.process_time() - began[0], time.perf_counter() - began[1]


def rounds(forms, x, y, number):
    """Form -> pairs of CPU and wall seconds, one a round; a round before the first warms up."""
    seconds = {name: [] for name in forms}
    for turn in range(number + 1):
        for name, form in forms.items():
            pair = measure(form.iterate, x, y)
            print("round", turn, name, [round(s, 2) for s in pair], file=sys.stderr, flush=True)
            if turn:
                seconds[name].append(pair)
    return seconds


def table(seconds, args):
    """Rows: the median CPU and wall seconds of each form, and how many times faster than the public one ours is."""
    rows = []
    for kind, index in (("cpu", 0), ("wall", 1)):
        taken = {name: statistics.median(pair[index] for pair in pairs) for name, pairs in seconds.items()}
        about = dict(seconds=kind, size=args.size, width=args.width, batch=1, rounds=args.rounds)
        rows += [dict(form=name, **about, step=round(value, 3)) for name, value in taken.items()]
        if "reference" in taken:
            rows.append(dict(form="reference / ours", seconds=kind, step=round(taken["reference"] / taken["ours"], 2)))
    load = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return [*rows, dict(note=args.note or "nothing said about other work on the machine", switched_away=load)]


def main():
    args = arguments(__doc__, reference="", size="96x96x72", width=64, rounds=3, note="")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    size = [int(n) for n in args.size.split("x")]
    x, y = torch.rand(1, 2, *size), torch.rand(1, 1, *size)
    forms = {"reference": Reference(args.reference, args.width)} if args.reference else {}
    forms["ours"] = Ours(args.width)
    write(args.out, "pix2pix_step-cpu", table(rounds(forms, x, y, args.rounds), args))


if __name__ == "__main__":
    main()
