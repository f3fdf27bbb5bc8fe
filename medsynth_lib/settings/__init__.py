"""Typed settings: a frozen dataclass an algorithm and a lesson; a profile is the base plus what differs."""

from medsynth_lib.settings.algorithms import *  # noqa: F403
from medsynth_lib.settings.lessons import *  # noqa: F403
from medsynth_lib.settings.profiles import *  # noqa: F403
