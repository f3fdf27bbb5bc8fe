"""Run `python -m medsynth_lib.evaluation.memory NETWORK`, the same as `medsynth memory NETWORK`."""

import sys

if __name__ == "__main__":
    from medsynth_lib.cli import main

    sys.exit(main(["memory", *sys.argv[1:]]))
