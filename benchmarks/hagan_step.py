"""HA-GAN, one training iteration step by step: seconds of the lean form beside the plain one or the public implementation.

    git clone https://github.com/batmanlab/HA-GAN DIR
    python benchmarks/hagan_step.py --size 128 --reference DIR
    python benchmarks/hagan_step.py --size 128               # plain beside lean

The forms take turns in one process; each form's step is the median of its rounds. Paper's widths, batch 2, one CPU thread. CPU
seconds (user and system, of this process) hardly depend on what else runs; wall seconds do, and on a GPU (``--device cuda``)
they alone count. ``--precision``: fp32; on a GPU also tf32 (fp32 whose convolutions and products may use TF32) and bf16
(autocast). ``--forms``: which to run, the first as the yardstick, such as "reference,lean,lean channels_last,lean compiled".
``--memory 1``: peak memory of each form alone, allocated on a GPU, resident elsewhere (there in a process of its own).
``--profile 1``, on a GPU: a table of each form's operations by torch.profiler, with the time that the GPU is busy. The zeroing
and freezing of the public loop are written here in our words, because it has no function to call.
"""

import contextlib
import gc
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from common import arguments, peak_gib, write
from torch.optim.optimizer import register_optimizer_step_post_hook

from medsynth_lib.settings import PublicHAGANSettings
from medsynth_lib.training.hagan_build import build as build_hagan
from medsynth_lib.training.loop import Run

STEPS = {"D": ("D^H", "D^L"), "G": ("G^A", "G^L", "G^H"), "E^H": ("E^H",), "E^G": ("E^G",)}


class Clock:
    """CPU and wall seconds of an iteration by the name of a step, which ends when the last of its optimisers has stepped."""

    def __init__(self, device, optimisers):
        self.device, self.seconds = device, {}
        self.ends = {id(of_step[-1]): step for step, of_step in optimisers.items()}

    def measure(self, iterate, x):
        def end(optimiser, *_):
            if id(optimiser) in self.ends:
                nonlocal began
                now = self.now()
                self.seconds[self.ends[id(optimiser)]] = now[0] - began[0], now[1] - began[1]
                began = now

        hook = register_optimizer_step_post_hook(end)
        began = self.now()
        iterate(x)
        hook.remove()

    def now(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()


def autocast(precision):
    return torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def backward_outside_autocast(loss):
    """Compute gradients without autocast, then forget its copies of weights, which are about to take a step."""
    with torch.autocast("cuda", enabled=False):
        loss.backward()
    torch.clear_autocast_cache()


class Ours:
    """HA-GAN of this library; ``form``: "plain" or "lean", then any of "channels_last", "compiled"."""

    def __init__(self, form, size, device, precision):
        kind, *switches = form.split()
        settings = PublicHAGANSettings(size=size, lean=kind == "lean", channels_last="channels_last" in switches)
        self.model, self.precision = build_hagan(settings), precision
        for network in self.model.networks.values():
            network.to(device)
            if "compiled" in switches:
                network.compile()
        optimisers = {step: [self.model.optimisers[name] for name in names] for step, names in STEPS.items()}
        self.clock, self.run = Clock(device, optimisers), Run(torch.device(device))
        if precision == "bf16":
            self.run = Run(torch.device(device), precision="bf16-mixed", backward=backward_outside_autocast)

    def iterate(self, x):
        with autocast(self.precision):
            self.model.step({"x": x}, self.run)


class Reference:
    """The public networks, driven as section II and the public loop drive them; its device calls do nothing on a CPU."""

    def __init__(self, folder, size, device, precision):
        sys.path.insert(0, str(folder))
        if device == "cpu":
            torch.Tensor.cuda = lambda self, *a, **k: self
        public = __import__(f"models.Model_HA_GAN_{size}", fromlist=["Generator"])
        self.g, self.d = public.Generator(mode="train", latent_dim=1024).to(device), public.Discriminator().to(device)
        self.high, self.ground = public.Encoder().to(device), public.Sub_Encoder(latent_dim=1024).to(device)
        self.nets = self.d, self.g, self.high, self.ground
        self.adam = [
            torch.optim.Adam(n.parameters(), 4e-4 if n is self.d else 1e-4, betas=(0.0, 0.999)) for n in self.nets
        ]
        self.size, self.device, self.precision = size, device, precision
        self.clock = Clock(device, {step: [adam] for step, adam in zip(STEPS, self.adam, strict=True)})

    def iterate(self, x):
        self.r = int(torch.randint(self.size * 7 // 8 + 1, ()))
        self.x, self.real = x, (x[:, :, self.r : self.r + self.size // 8], F.interpolate(x, scale_factor=0.25))
        losses = self.d_loss, self.g_loss, self.high_loss, self.ground_loss
        for network, adam, loss in zip(self.nets, self.adam, losses, strict=True):
            self.update(network, adam, loss)

    def update(self, network, adam, loss):
        for other in self.nets:
            other.requires_grad_(other is network)
        network.zero_grad()
        with autocast(self.precision):  # its copies of weights end before these take a step
            value = loss()
        value.backward()
        adam.step()

    def fake(self):
        return self.g(torch.randn(len(self.x), 1024, device=self.device), crop_idx=self.r)

    def judge(self, pair, real):
        logits = self.d(*pair, self.r)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def d_loss(self):
        return self.judge(self.real, True) + self.judge(self.fake(), False)

    def g_loss(self):
        return self.judge(self.fake(), True)

    def high_loss(self):
        return F.l1_loss(self.g(self.high(self.real[0]), crop_idx=None), self.real[0])

    def ground_loss(self):
        with torch.no_grad():
            features = torch.cat([self.high(part) for part in self.x.split(self.size // 8, 2)], 2)
        made = self.g(self.ground(features), crop_idx=self.r)
        return sum(F.l1_loss(a, b) for a, b in zip(made, self.real, strict=True)) / 2


def build(form, args):
    if form == "reference":
        return Reference(args.reference, args.size, args.device, args.precision)
    return Ours(form, args.size, args.device, args.precision)


def peak(form, args, x):
    """Peak memory in GiB of two iterations of one form alone: allocated on a GPU, elsewhere resident in its own process."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        subject = build(form, args)
        for _ in range(2):
            subject.iterate(x)
        del subject
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.max_memory_allocated() / 2**30
    flags = [f"--{k}={getattr(args, k)}" for k in ("size", "reference", "device", "batch")]
    out = subprocess.run([sys.executable, __file__, *flags, "--only", form], check=True, capture_output=True, text=True)
    return float(out.stdout.split()[-1])


def main():
    args = arguments(
        __doc__, size=128, reference="", forms="", rounds=3, precision="fp32", batch=2, memory=0, profile=0, only="", note=""
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.rand(args.batch, 1, *[args.size] * 3, device=args.device) * 2 - 1
    if args.only:
        form = build(args.only, args)
        for _ in range(2):
            form.iterate(x)
        print(peak_gib())
        return
    names = args.forms.split(",") if args.forms else ["reference" if args.reference else "plain", "lean"]
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    # memory first: a child process starts with its parent's
    peaks = {form: round(peak(form, args, x), 2) for form in names if args.memory}
    forms = {form: build(form, args) for form in names}
    seconds = rounds(forms, x, args.rounds)
    name = f"hagan_step-{args.device}-{args.size}" + ("" if args.device == "cpu" else f"-{args.precision}")
    write(args.out, name, table(seconds, peaks, args), args.device)
    for form, subject in forms.items() if args.profile else ():
        profile(subject, x, args.out / f"{name}-{form.replace(' ', '_')}.txt")


def profile(subject, x, path):
    """Write the operations of one iteration that keep the GPU busy longest."""
    activities = torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=activities) as profiler:
        subject.iterate(x)
    table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=60)
    path.write_text(table + "\n", encoding="utf-8")


def rounds(forms, x, number):
    """Form -> step -> pairs of CPU and wall seconds, one a round; a round before the first warms up."""
    seconds = {form: {step: [] for step in STEPS} for form in forms}
    for turn in range(number + 1):
        for form, subject in forms.items():
            subject.clock.measure(subject.iterate, x)
            cpu = {step: round(pair[0], 2) for step, pair in subject.clock.seconds.items()}
            print("round", turn, form, cpu, file=sys.stderr, flush=True)
            for step, pair in subject.clock.seconds.items():
                if turn:
                    seconds[form][step].append(pair)
    return seconds


def table(seconds, peaks, args):
    """Rows: CPU and wall seconds of every step and of their sum, form by form; how many times faster than the first each is."""
    first, *others = seconds
    rows = []
    for kind, index in (("cpu", 0), ("wall", 1)) if args.device == "cpu" else (("wall", 1),):
        taken = {f: {s: statistics.median(p[index] for p in v) for s, v in seconds[f].items()} for f in seconds}
        for form in taken:
            taken[form]["iteration"] = sum(taken[form].values())
            row = dict(form=form, seconds=kind, size=args.size, batch=args.batch, rounds=args.rounds)
            row |= dict(precision=args.precision)
            rows.append(row | {s: round(v, 4) for s, v in taken[form].items()} | dict(peak_gib=peaks.get(form)))
        for form in others:
            ratio = {s: round(taken[first][s] / taken[form][s], 2) for s in taken[first]}
            rows.append(dict(form=f"{first} / {form}", seconds=kind) | ratio)
    load = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return rows + [dict(note=args.note or "nothing said about other work on the machine", switched_away=load)]


if __name__ == "__main__":
    main()
