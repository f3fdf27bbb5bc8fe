"""pix2pix: parameter counts, receptive field, sizes, losses, exact resume, interrupts and faults."""

import copy
import os
import signal
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.evaluation.receptive_field import positive_copy, receptive_field
from medsynth_lib.experiments import trained_models as artefacts
from medsynth_lib.files import DataError
from medsynth_lib.models.few_channels import FromFewChannels, to_few_channels
from medsynth_lib.models.pix2pix import (
    TOGETHER,
    BlurPool,
    ByChannels,
    DenseShortcut,
    Discriminator,
    Generator,
    LeakyNormalise,
    Normalise,
)
from medsynth_lib.settings import Pix2PixSettings
from medsynth_lib.training import loop
from medsynth_lib.training.pix2pix import Pix2Pix, feature_matching_loss, lsgan_loss

SETTINGS = Pix2PixSettings(
    width=4, loss="l1", learning_rate=0.005, spatial=0.5, intensity=0.5, steps=8, batch_size=2, validate_every=3
)
GAN = replace(SETTINGS, loss="gan")


class Volumes(torch.utils.data.Dataset):
    """Random samples with the keys of PairedVolumes."""

    def __init__(self, n, seed, size=16):
        generator = torch.Generator().manual_seed(seed)
        self.samples = [
            dict(
                x=torch.rand(2, size, size, size, generator=generator),
                y=torch.rand(1, size, size, size, generator=generator),
                mask=torch.ones(1, size, size, size, dtype=torch.bool),
            )
            for _ in range(n)
        ]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def trained(folder, steps, settings=SETTINGS, **options):
    torch.manual_seed(0)
    algorithm = Pix2Pix(settings)
    history = loop.fit(
        algorithm,
        Volumes(5, 1),
        Volumes(2, 2),
        folder,
        steps=steps,
        batch_size=2,
        validate_every=3,
        checkpoint_every=3,
        **options,
    )
    return algorithm, history


@cache
def never_stopped(settings=SETTINGS):
    """A training of eight steps, shared by the tests that compare with it."""
    with tempfile.TemporaryDirectory() as folder:
        return trained(folder, 8, settings)


def same_weights(a, b):
    return all(
        torch.equal(v, b.networks[n].state_dict()[k])
        for n, net in a.networks.items()
        for k, v in net.state_dict().items()
    )


# ---------------------------------------------------------------- networks


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_are_the_papers():
    assert count(Generator()) == 2_113_953 and count(Discriminator()) == 540_737


def test_forward_cost_is_528_gmac():
    """Multiply-adds of all convolutions at 144 x 192 x 192, counted on shapes alone."""
    total = []

    def hook(module, inputs, output):
        kernel = module.weight[0].numel() if isinstance(module, torch.nn.Conv3d) else module.weight[:, :].numel()
        voxels = (
            output[0, 0].numel() * output.shape[1] if isinstance(module, torch.nn.Conv3d) else inputs[0][0, 0].numel()
        )
        total.append(kernel * voxels)

    with torch.device("meta"):
        network = Generator()
        for module in network.modules():
            if isinstance(module, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)):
                module.register_forward_hook(hook)
        network(torch.empty(1, 2, 144, 192, 192))
    assert sum(total) / 1e9 == pytest.approx(528, abs=0.5)


def test_receptive_fields():
    """126 to 134 voxels for the generator, by gradient; the paper's '9 x 9 x 9' matches no path through it."""
    assert receptive_field(positive_copy(Generator(width=8))) == (126, 134)
    # by hand: three 4-kernels behind a stride of 2 reach 1 + 9 = 10 positions, i.e. 19 voxels; blur 3, first kernel 4
    assert receptive_field(positive_copy(Discriminator(width=8)), size=64, channels=3) == (24, 24)


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 23, 9), (8, 8, 8), (1, 5, 40)])
def test_any_size_goes_in_and_comes_out(size):
    out = Generator(width=8)(torch.rand(2, 2, *size))
    assert out.shape == (2, 1, *size) and 0 <= out.min() and out.max() <= 1


def test_padding_does_not_change_sizes_that_fit():
    """A volume that is a multiple of 8 is not touched by the padding: same result as without it."""
    network, x = Generator(width=8), torch.rand(1, 2, 16, 24, 16)
    x4 = network.down2(network.down1(x))
    x8 = network.at_eighth(network.down3(x4))
    x2 = network.at_half(torch.cat([network.at_quarter(torch.cat([x8, x4], 1)), network.down1(x)], 1))
    torch.testing.assert_close(network(x), network.out(x2))


def test_generator_ignores_gain_and_offset_of_its_inputs():
    """Instance norm after the first convolution removes a common gain (the interior of an offset too, not the border)."""
    network, x = Generator(width=8).double(), torch.rand(1, 2, 16, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(network(x), network(7 * x), atol=2e-3, rtol=0)


def test_samples_of_a_batch_do_not_mix():
    """No batch statistics anywhere: the reason why adaptive batch norm would be a no-op here."""
    network, x = Generator(width=8), torch.rand(2, 2, 16, 16, 16)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-5, rtol=0)


def test_dense_shortcut_is_its_equation():
    block, x0 = DenseShortcut(4), torch.randn(1, 4, 6, 6, 6)
    for w in block.weights:
        torch.nn.init.normal_(w)
    n, (c1, c2, c3), (w1, w2, w3) = Normalise(), block.convs, block.weights
    x1 = n(c1(x0)) + w1[0] * x0
    x2 = n(c2(x1)) + w2[0] * x0 + w2[1] * x1
    x3 = n(c3(x2)) + w3[0] * x0 + w3[1] * x1 + w3[2] * x2
    torch.testing.assert_close(block(x0), x3)


def test_blur_pool_keeps_constants_and_kills_the_checkerboard():
    i = torch.arange(16)
    board = ((i[:, None, None] + i[None, :, None] + i[None, None]) % 2).float()[None, None]
    assert torch.allclose(BlurPool()(board)[..., 1:-1, 1:-1, 1:-1], torch.tensor(0.5))
    assert torch.allclose(BlurPool()(torch.full((1, 3, 8, 8, 8), 2.0)), torch.tensor(2.0))


@pytest.mark.parametrize("size", [(8, 6, 10), (7, 9, 5), (2, 3, 4)])
def test_blur_pool_is_its_convolution(size):
    k = torch.tensor([1.0, 2.0, 1.0]).double() / 4
    kernel = torch.einsum("i,j,k->ijk", k, k, k).expand(3, 1, 3, 3, 3)
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, [1] * 6, mode="reflect")
    torch.testing.assert_close(BlurPool()(x), torch.nn.functional.conv3d(padded, kernel, stride=2, groups=3))


def test_channels_on_their_own_give_the_same_bits():
    """Neither instance norm nor leaky ReLU nor halving mixes channels, so that a few at a time are as good as all."""
    layers = (LeakyNormalise(), BlurPool())
    x = torch.randn(2, 2 * TOGETHER + 1, 9, 8, 7)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    found, wanted = ByChannels(*layers)(ours), torch.nn.Sequential(*layers)(theirs)
    assert torch.equal(found, wanted)
    for y in (found, wanted):
        y.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_the_discriminator_is_its_layers():
    torch.manual_seed(0)
    d, x = Discriminator(width=20), torch.rand(1, 3, 12, 10, 8)  # parts of 16 and 4 channels
    norm, leaky = torch.nn.InstanceNorm3d(20), torch.nn.LeakyReLU(0.2)
    logits, blocks, first = d(x)
    layers = [torch.nn.Sequential(d.first.convolution, norm, leaky, BlurPool())]
    layers += [torch.nn.Sequential(block[0], norm, leaky) for block in (d.second, d.third)]
    torch.testing.assert_close(torch.cat(first, 1), d.first.convolution(x))
    for layer, found in zip(layers, blocks, strict=True):
        x = layer(x)
        torch.testing.assert_close(found, x)
    torch.testing.assert_close(logits, torch.nn.functional.conv3d(x, d.logits.weight, d.logits.bias, padding=1))


@pytest.mark.parametrize("size", [(8, 6, 10), (7, 6, 5), (5, 5, 5)])
def test_few_channels_are_convolved_as_by_torch(size):
    """Results and all gradients, for even and odd sizes, against torch's convolution in double precision."""
    torch.manual_seed(0)
    convolve = torch.nn.functional.conv3d

    def compare(ours, theirs, *shapes):
        one = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        two = [tensor.detach().clone().requires_grad_() for tensor in one]
        found, wanted = ours(*one), theirs(*two)
        torch.testing.assert_close(found, wanted)
        for y in (found, wanted):
            (y.sin() * y).sum().backward()
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a.grad, b.grad)

    for padding in (1, 2):
        compare(lambda x, w, p=padding: to_few_channels(x, w, p), lambda x, w, p=padding: convolve(x, w, padding=p),
                (2, 6, *size), (2, 6, 4, 4, 4))  # fmt: skip
    compare(FromFewChannels.apply, lambda x, w, b: convolve(x, w, b, padding=1), (2, 3, *size), (6, 3, 4, 4, 4), (6,))


# ---------------------------------------------------------------- losses and step


def test_losses_in_closed_form():
    assert float(lsgan_loss(torch.full((4,), 0.5), True)) == 0.25 and float(lsgan_loss(torch.zeros(4), False)) == 0
    real = [torch.zeros(3, requires_grad=True), torch.zeros(3)]
    fake = [torch.ones(3, requires_grad=True), torch.full((3,), 3.0)]
    loss = feature_matching_loss(fake, real)
    loss.backward()
    assert float(loss) == 2 and real[0].grad is None and fake[0].grad is not None


def test_gan_step_trains_each_network_on_its_own_loss():
    algorithm = Pix2Pix(GAN)
    batch = torch.utils.data.default_collate([Volumes(1, 3, 24)[0]])
    before = {n: [p.clone() for p in net.parameters()] for n, net in algorithm.networks.items()}
    losses = algorithm.step(batch)
    assert set(losses) == {"l1", "discriminator", "adversarial", "matching"}
    for name, network in algorithm.networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True))
        assert all(p.requires_grad for p in network.parameters())


def test_the_adversarial_step_is_the_one_without_savings():
    """Against D's gradients computed in both updates, and real features with a graph, to rounding."""
    torch.manual_seed(0)
    algorithm = Pix2Pix(GAN)
    g, d = (copy.deepcopy(algorithm.networks[name]) for name in ("generator", "discriminator"))
    adams = [torch.optim.Adam(network.parameters(), 0.005, (0.5, 0.999)) for network in (g, d)]
    for seed in (3, 4):
        batch = torch.utils.data.default_collate([Volumes(1, seed, 24)[0]])
        x, y, y_hat = batch["x"], batch["y"], g(batch["x"])
        real, fake = torch.cat([x, y], 1), torch.cat([x, y_hat], 1)
        loss = (lsgan_loss(d(real)[0], True) + lsgan_loss(d(fake.detach())[0], False)) / 2
        adams[1].zero_grad()
        loss.backward()
        adams[1].step()
        logits, found, _ = d(fake)
        wanted = [f.detach() for f in d(real)[1]]
        matching = sum((a - b).abs().mean() for a, b in zip(found, wanted, strict=True)) / 3
        adams[0].zero_grad()
        (lsgan_loss(logits, True) + 100 * (y_hat - y).abs().mean() + 1.5 * matching).backward()
        adams[0].step()
        losses = algorithm.step(batch)
        assert losses["discriminator"].item() == pytest.approx(loss.item(), rel=1e-5)
        assert losses["matching"].item() == pytest.approx(matching.item(), rel=1e-5)
    for name, network in dict(generator=g, discriminator=d).items():
        for a, b in zip(network.parameters(), algorithm.networks[name].parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_l1_training_learns_an_identity():
    """T1 := FLAIR can be learned exactly; after 60 steps the L1 is a third of where it started."""
    data = Volumes(2, 5)
    for s in data.samples:
        s["y"] = torch.nn.functional.avg_pool3d(s["x"][:1], 5, 1, 2)
        s["x"][:1] = s["y"]
    torch.manual_seed(0)
    algorithm = Pix2Pix(replace(SETTINGS, width=16, spatial=0.0, intensity=0.0))
    first = float(algorithm.step(torch.utils.data.default_collate([data[0]]))["l1"])
    for i in range(60):
        last = float(algorithm.step(torch.utils.data.default_collate([data[i % 2]]))["l1"])
    assert last < first / 3


def test_learning_rate_of_the_lesson_ends_at_the_papers():
    lesson = dict(learning_rate=0.005, constant_until=1 / 3, decay_until=0.8, final_learning_rate=1e-4)
    rate = Pix2Pix(replace(SETTINGS, **lesson)).learning_rate
    assert rate(0, 3000) == rate(1000, 3000) == 0.005 and rate(1700, 3000) == pytest.approx(0.0025)
    assert rate(2400, 3000) == rate(2999, 3000) == 1e-4


def test_learning_rate_of_the_paper_is_constant_then_falls_to_zero():
    algorithm = Pix2Pix(SETTINGS)
    rates = [algorithm.learning_rate(s, 120) / 0.005 for s in range(121)]
    assert rates[0] == rates[50] == 1 and rates[85] == pytest.approx(0.5) and rates[120] == 0


# ---------------------------------------------------------------- the loop: resume, interrupts, faults


@pytest.mark.parametrize("loss", ["l1", "gan"])
@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_resume_at_any_step_is_exact(tmp_path, monkeypatch, loss, stop):
    """Stopped by Ctrl-C after any step and gone on: bit for bit the weights and losses of a run that never stopped."""
    settings = replace(SETTINGS, loss=loss)
    whole, history = never_stopped(settings)
    step = Pix2Pix.step

    def interrupting(self, batch, run):
        interrupting.calls += 1
        if interrupting.calls == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, run)

    interrupting.calls = 0
    monkeypatch.setattr(Pix2Pix, "step", interrupting)
    with pytest.raises(KeyboardInterrupt, match=f"after step {stop} of 8"):
        trained(tmp_path / "broken", 8, settings)
    again, resumed = trained(tmp_path / "broken", 8, settings)
    assert same_weights(whole, again)
    assert resumed["tune_l1"].tolist() == history["tune_l1"].tolist()


def test_killed_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    """kill -9 gives no chance to save: the last periodic checkpoint (step 6) is whole, and the result the same."""
    import multiprocessing

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # forked children need it, and equal bits need an equal number of threads
    whole, _ = trained(tmp_path / "whole", 8)

    def child():
        step = Pix2Pix.step

        def dying(self, batch, run):
            dying.calls += 1
            if dying.calls == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, run)

        dying.calls = 0
        Pix2Pix.step = dying
        trained(tmp_path / "killed", 8)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    again, _ = trained(tmp_path / "killed", 8)
    torch.set_num_threads(threads)
    assert same_weights(whole, again)


def test_non_finite_loss_is_named_and_keeps_the_checkpoint(tmp_path):
    algorithm, _ = trained(tmp_path, 3)
    saved = (tmp_path / "checkpoint.safetensors").read_bytes()
    data = Volumes(5, 1)
    for sample in data.samples:
        sample["y"][0, 0, 0, 0] = float("nan")
    with pytest.raises(loop.NonFiniteLoss, match="'l1' is nan at step 4"):
        loop.fit(Pix2Pix(SETTINGS), data, Volumes(2, 2), tmp_path, steps=8, batch_size=2, validate_every=3)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == saved


@pytest.mark.slow
def test_full_disk_is_named_and_keeps_the_checkpoint(tmp_path):
    """A real one: a child process may write no file longer than 4 kB, as if the disk ended there."""
    import subprocess
    import sys

    trained(tmp_path, 3)
    saved = (tmp_path / "checkpoint.safetensors").read_bytes()
    program = f"""
import resource, torch
from test_pix2pix import trained
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
trained({str(tmp_path)!r}, 8)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert "DataError" in done.stderr and "checkpoint.safetensors: cannot be written" in done.stderr, done.stderr[
        -2000:
    ]
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == saved
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "history.csv"]


def test_stop_between_history_and_checkpoint_loses_nothing(tmp_path, monkeypatch):
    """The history is written first: a run killed before the checkpoint goes on from the one before."""
    whole, _ = never_stopped()

    def killed(*arguments):
        if arguments[-1]["step"] == 6:
            raise SystemError("killed")
        return save(*arguments)

    save = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(SystemError):
        trained(tmp_path / "broken", 8)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    again, history = trained(tmp_path / "broken", 8)
    assert same_weights(whole, again) and history["step"].tolist() == [3, 6, 8]


def test_non_finite_weights_never_reach_a_checkpoint(tmp_path, monkeypatch):
    """NaN from the last update shows in the tuning loss alone; the checkpoint on disk stays the one from before."""
    trained(tmp_path, 3)
    saved = (tmp_path / "checkpoint.safetensors").read_bytes()
    step = Pix2Pix.step

    def poisoning(self, batch, run):
        losses = step(self, batch, run)
        poisoning.calls += 1
        if poisoning.calls == 3:  # step 6: validation and checkpoint follow
            self.networks["generator"].out[1].bias.data.fill_(float("nan"))
        return losses

    poisoning.calls = 0
    monkeypatch.setattr(Pix2Pix, "step", poisoning)
    with pytest.raises(loop.NonFiniteLoss, match="'tune_l1' is nan at step 6"):
        trained(tmp_path, 8)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == saved


def test_damaged_checkpoint_is_named(tmp_path):
    trained(tmp_path, 3)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="checkpoint.safetensors.*delete it"):
        trained(tmp_path, 8)


def test_every_epoch_shows_every_sample_once():
    for seed in (0, 1):
        shown = [i for step in range(12) for i in loop.batch_indices(8, 2, seed, step)]
        assert all(sorted(shown[e * 8 : e * 8 + 8]) == list(range(8)) for e in range(3))
        assert shown[:8] != shown[8:16]


def test_processes_share_an_epoch():
    ranks = [loop.batch_indices(8, 1, 0, step, rank, 2) for step in range(4) for rank in range(2)]
    assert sorted(i for batch in ranks for i in batch) == list(range(8))


# ---------------------------------------------------------------- artefacts


class Prepared(Volumes):
    """Volumes with what an artefact's key is made of."""

    def __init__(self, n, seed, contract=None):

        super().__init__(n, seed)
        self.contract = contract or Contract()
        rows = [dict(subject=f"s{seed}{i}", site="A", simulated=True) for i in range(n)]
        self.manifest = Manifest(pd.DataFrame(rows), Path("folder"))


def test_artefact_is_trained_once_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path))
    first = artefacts.train_or_load("test", SETTINGS, Prepared(3, 1), Prepared(2, 2))
    second = artefacts.train_or_load("test", SETTINGS, Prepared(3, 1), Prepared(2, 2))
    assert (first.origin, second.origin) == ("trained now", "cached")
    assert same_weights(first, second) and second.history["step"].tolist() == [3, 6, 8]
    other = artefacts.train_or_load("test", replace(SETTINGS, seed=1), Prepared(3, 1), Prepared(2, 2))
    assert other.folder != first.folder and not same_weights(first, other)
    with pytest.raises(DataError, match="spacing"):
        first.require(Contract(spacing=(2.0, 2.0, 2.0)))


def test_shipped_artefact_is_half_precision_and_preferred(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDSYNTH_NOTEBOOKS", str(tmp_path / "notebooks"))
    made = artefacts.train_or_load("test", SETTINGS, Prepared(3, 1), Prepared(2, 2))
    artefacts.ship(made.folder, tmp_path / "notebooks" / "pretrained")
    shipped = artefacts.train_or_load("test", SETTINGS, Prepared(3, 1), Prepared(2, 2))
    assert shipped.origin == "shipped"
    x = torch.rand(1, 2, 16, 16, 16)
    torch.testing.assert_close(shipped.networks["generator"](x), made.networks["generator"](x), atol=0.01, rtol=0)


def test_artefact_key_follows_settings_data_and_contract():
    data = Prepared(3, 1), Prepared(2, 2)
    keys = {
        artefacts.artefact_key(SETTINGS, *data),
        artefacts.artefact_key(replace(SETTINGS, width=8), *data),
        artefacts.artefact_key(SETTINGS, Prepared(4, 1), data[1]),
        artefacts.artefact_key(
            SETTINGS, *(Prepared(n, s, Contract(normalisation="minmax")) for n, s in ((3, 1), (2, 2)))
        ),
    }
    assert len(keys) == 4


def test_damaged_artefact_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path))
    made = artefacts.train_or_load("test", SETTINGS, Prepared(3, 1), Prepared(2, 2))
    (made.folder / "weights.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=f"{made.folder.name}.*delete the folder"):
        artefacts.train_or_load("test", SETTINGS, Prepared(3, 1), Prepared(2, 2))


def test_fabric_gives_the_same_weights(tmp_path):
    from lightning_fabric import Fabric

    plain, _ = never_stopped()
    fabric, _ = trained(tmp_path / "b", 8, fabric=Fabric(accelerator="cpu", devices=1))
    for a, b in zip(plain.networks["generator"].parameters(), fabric.networks["generator"].parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


@pytest.fixture(scope="module")
def trained_by_two_processes(tmp_path_factory):
    """A folder with l1.safetensors and gan.safetensors."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, str(Path(__file__).with_name("ddp_worker.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["l1", "gan"])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, loss, trained_by_two_processes):
    """DDP averages gradients, and the processes share an epoch: 2 x batch 1 is 1 x batch 2, up to float32 summation."""
    from safetensors.torch import load_file

    torch.manual_seed(0)
    one = Pix2Pix(replace(SETTINGS, loss=loss, spatial=0.0, intensity=0.0))
    loop.fit(one, Volumes(6, 1, 24), Volumes(1, 2, 24), tmp_path / "one", steps=4, batch_size=2, validate_every=4)
    other = Generator(width=4)
    other.load_state_dict(load_file(trained_by_two_processes / f"{loss}.safetensors"))
    # outputs, not weights: biases before an instance norm have no gradient but rounding, which Adam turns into steps
    x = Volumes(1, 3, 24)[0]["x"][None]
    difference = (other(x) - one.networks["generator"](x)).abs()
    assert difference.max() < 0.02 and difference.mean() < 1e-3, (difference.max(), difference.mean())
