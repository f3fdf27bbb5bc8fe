"""Run `python -m medsynth_lib COMMAND`, the same as `medsynth COMMAND`."""

import sys

if __name__ == "__main__":
    from medsynth_lib.cli import main

    sys.exit(main())
