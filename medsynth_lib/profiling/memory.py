"""The command line of the planner: what a training step keeps in memory, and what fits on which card.

    medsynth memory SegResNet --size 128 --batch 2 --precision "bf16 autocast"
    medsynth memory HA-GAN lean=true --size 64 128 256 --batch 1 2 4
    medsynth memory alpha-GAN --size 64 128 256
    medsynth memory package.module:function --checkpointing

Nothing is allocated. `python -m medsynth_lib.profiling.memory` does the same.
"""

import argparse
import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medsynth_lib.profiling.networks import BASELINES, baseline, hagan
from medsynth_lib.profiling.planner import largest, on_a_card, plan
from medsynth_lib.profiling.precision import PRECISIONS
from medsynth_lib.profiling.report import GIB, MIB
from medsynth_lib.settings.profiles import parse_value, require_known

ERRORS = (ValueError, TypeError, RuntimeError, ImportError, AttributeError, KeyError)  # of a request, or of a network


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan what a command line asks for.

    Args:
        arguments: words after the command; None: those that the program was started with.

    Returns: the exit status: 0, or 2 for a request that makes no sense.
    """
    options = make_parser().parse_args(arguments)
    setting = {k: getattr(options, k) for k in ("precision", "checkpointing", "sub_volume", "channels")}
    try:
        show(find(options.network, dict(map(key_value, options.arguments))), options, setting)
    except ERRORS as error:
        print(error.args[0] if isinstance(error, KeyError) and error.args else error, file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command."""
    usage = "\n".join(line for line in __doc__.splitlines() if line.startswith("    medsynth"))
    parser = argparse.ArgumentParser(
        "medsynth memory",
        description="Say what a training step holds in GPU memory, and which setting fits which card. Nothing is allocated.",
        epilog=f"examples:\n{usage}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("network", help=f"HA-GAN, {', '.join(BASELINES)}, a class of monai.networks.nets, or package.module:function")
    add("arguments", nargs="*", metavar="key=value", help="of the network, such as init_filters=16 or lean=true")
    add("--size", type=int, nargs="+", default=[128], metavar="N", help="voxels along each axis (default: 128)")
    add("--batch", type=int, nargs="+", default=[1], metavar="N", help="volumes in a batch (default: 1)")
    add("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    add(
        "--checkpointing", action="store_true", help="compute blocks again in the backward pass instead of storing them"
    )
    add("--sub-volume", type=float, metavar="SHARE", help="share of the slices that is trained on, such as 0.125")
    add("--channels", type=int, default=1, metavar="N", help="of the input volume (default: 1)")
    add("--layers", type=int, default=0, metavar="N", help="show the N layers that hold most at the peak")
    return parser


def show(build: Callable, options: argparse.Namespace, setting: Mapping[str, Any]) -> None:
    """Print the plan of the largest setting asked for, then what fits the cards."""
    top = max(options.size), max(options.batch)
    result = plan(build, *top, **setting)
    print(f"{options.network}, {top[0]}^3, batch {top[1]}: {result}")
    needs = on_a_card(result.peak) / GIB
    print(f"on a card about {needs:.1f} GiB (assumed: 1 GiB for context, 15 % for workspaces and gaps)")
    print((result.phases / MIB).round(0).astype(int).to_string())
    if options.layers:
        print((result.layers.nlargest(options.layers, "peak") / MIB).round(1).to_string())
    print("largest setting that fits a card of so many GB:")
    print(
        largest(build, options.size, options.batch, peaks={top: result.peak}, **setting)
        .round(2)
        .to_string(na_rep="nothing")
    )


# -- the network of a command line ---------------------------------------------------------------------------------------------


def key_value(text: str) -> tuple[str, str]:
    """Split "key=value".

    Raises: ValueError where there is no "=".
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is no argument of a network; write key=value")
    return key, value


def find(name: str, texts: Mapping[str, str]) -> Callable:
    """Find the function that builds a network, by its name on the command line.

    Args:
        name: "HA-GAN", one of `BASELINES`, package.module:function, or a class of monai.networks.nets.
        texts: arguments of that function.

    Returns: a function of the other arguments.
    Raises: ValueError, KeyError: an unknown name, argument or value.
    """
    plain = {_plain(known): known for known in ("HA-GAN", *BASELINES)}
    known = plain.get(_plain(name))
    if known == "HA-GAN":
        return partial_of(hagan, read_arguments(name, hagan, texts))
    if known:
        return partial_of(baseline, dict(name=known) | read_arguments(name, baseline, texts, fixed=("name",)))
    if ":" in name:
        module, function = name.split(":")
        function = getattr(importlib.import_module(module), function)
        return partial_of(function, read_arguments(name, function, texts))
    nets = importlib.import_module("monai.networks.nets")
    if not hasattr(nets, name):
        raise ValueError(f"{name!r} is neither HA-GAN nor {', '.join(BASELINES)}, nor package.module:function, nor a network of "
                         "monai.networks.nets")  # fmt: skip
    network, usual = getattr(nets, name), {"spatial_dims": 3, "in_channels": 1, "out_channels": 1}
    usual = {k: v for k, v in usual.items() if k in inspect.signature(network).parameters}
    return partial_of(network, usual | read_arguments(name, network, texts))


def _plain(name: str) -> str:
    return name.upper().replace("-", "").replace(" ", "")


def read_arguments(
    name: str, function: Callable, texts: Mapping[str, str], fixed: Sequence[str] = ()
) -> dict[str, Any]:
    """Read the arguments of a function from texts, each as the type of its default.

    Raises: KeyError for an unknown argument, with the nearest known one; ValueError for a value of another type.
    """
    parameters = inspect.signature(function).parameters
    known = [key for key in parameters if key not in fixed]
    for key in texts:
        require_known(key, known, f"The command for {name}")
    return {key: read_value(text, parameters[key].default, key) for key, text in texts.items()}


def read_value(text: str, default: Any, key: str) -> Any:
    """Read one value of the command line.

    It is a Python literal, true or false, or plain text where the default is none of these.

    Raises: ValueError for text in the place of a number, and for what is neither true nor false in the place of a bool.
    """
    if isinstance(default, bool):
        return parse_value(text, default, key)
    value = _literal(text)
    if isinstance(default, str):
        return value if isinstance(value, tuple | list | dict) else text
    if isinstance(default, int | float):
        return parse_value(text, default, key) if isinstance(value, str | bool) else value
    return parse_value(text, False, key) if text.lower() in ("true", "false", "yes", "no", "on", "off") else value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def partial_of(function: Callable, arguments: Mapping[str, Any]) -> Callable:
    """Fix these arguments of a function and hide them from the planner.

    The planner looks at the signature.
    """
    asked = [p for key, p in inspect.signature(function).parameters.items() if key not in arguments]

    def build(**given):
        return function(**arguments, **given)

    signature = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in asked])
    build.__signature__ = signature  # type: ignore[attr-defined]
    return build


if __name__ == "__main__":
    sys.exit(main())
