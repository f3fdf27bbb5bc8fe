"""Memory and time of a training step, accounted on shapes or measured."""
