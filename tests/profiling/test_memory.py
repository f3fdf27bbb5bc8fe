"""The command `medsynth memory`."""

import re
import shlex

import pytest

from medsynth_lib.profiling import memory


@pytest.mark.slow
def test_command_line(capsys):
    network = "toys:segresnet"
    assert memory.main([network, "--size", "8", "16", "--layers", "3"]) == 0
    text = capsys.readouterr().out
    assert "16^3, batch 1: peak" in text and "optimiser" in text and "layer" in text
    assert memory.main(["UNet", "channels=(4,8)", "strides=(2,)", "--size", "8", "--checkpointing"]) == 0
    small = ["latent=8", "width=2", "widest=8", "--size", "8"]
    assert memory.main(["alpha-GAN", *small]) == 0 and "8^3, batch 1: peak" in capsys.readouterr().out
    assert memory.main(["WGAN", *small, "--sub-volume", "0.5"]) == 2 and "no setting" in capsys.readouterr().err


@pytest.mark.parametrize("text, lean", [("true", True), ("Yes", True), ("1", True), ("false", False), ("False", False),
                                        ("no", False), ("off", False), ("0", False)])  # fmt: skip
def test_text_is_read_as_true_or_false(text, lean):
    assert memory.read_arguments("HA-GAN", memory.hagan, {"lean": text}) == {"lean": lean}


def test_values_have_the_type_of_the_default():
    def build(n=1, rate=0.5, name="relu", shape=(1, 2), extra=None):
        pass

    texts = dict(n="3", rate="2", name="False", shape="(3, 4)", extra="false")
    found = memory.read_arguments("build", build, texts)
    assert found == dict(n=3, rate=2, name="False", shape=(3, 4), extra=False)
    assert memory.read_value("('group', {'num_groups': 4})", "batch", "norm") == ("group", {"num_groups": 4})


@pytest.mark.parametrize("arguments, message", [
    ("HA-GAN lean=maybe", "lean='maybe' is neither true nor false; write true or false"),
    ("HA-GAN lean=2", "lean='2' is neither true nor false"),
    ("HA-GAN c=wide", "c='wide' is not a number"),
    ("HA-GAN c=True", "c='True' is not a number"),
    ("HA-GAN laten=8", "The command for HA-GAN names 'laten', which is unknown; did you mean 'latent'?"),
    ("HA-GAN lean", "'lean' is no argument of a network; write key=value"),
    ("WGAN name=VAE-GAN", "names 'name', which is unknown"),
    ("NoSuchNet", "neither HA-GAN"),
])  # fmt: skip
def test_arguments_that_make_no_sense_end_with_a_message(arguments, message, capsys):
    assert memory.main(arguments.split()) == 2
    text = capsys.readouterr()
    assert message in text.err and not text.out


USAGE = [
    line.strip() for line in memory.__doc__.splitlines() if line.startswith("    medsynth") and "package." not in line
]


@pytest.mark.slow
@pytest.mark.parametrize("line", USAGE)
def test_usage_lines_of_the_command_line(line, capsys):
    """As the module's docstring has them, at a smaller size."""
    _, command, *arguments = shlex.split(
        re.sub(r"--(size|batch) [\d ]+", r"--\1 32 ", line).replace("--batch 32", "--batch 1")
    )
    assert command == "memory" and memory.main(arguments) == 0
    assert "32^3, batch " in capsys.readouterr().out


def test_the_docstring_has_usage_lines():
    assert {line.split()[2] for line in USAGE} == {"SegResNet", "HA-GAN", "alpha-GAN"}


@pytest.mark.parametrize("arguments, message", [
    ("UNet --size 16", "missing 2 required positional arguments: 'channels' and 'strides'"),
    ("SegResNet --size 15", "15"),  # by torch: 15 becomes 8, and 8 becomes 16
    ("HA-GAN --size 48", "volume size 48 is not one of"),
    ("alpha-GAN --size 12", "volume size 12 is not a power of two"),
])  # fmt: skip
def test_requests_that_make_no_sense_end_with_a_message(arguments, message, capsys):
    assert memory.main(arguments.split()) == 2
    text = capsys.readouterr()
    assert message in text.err and not text.out
