"""Figures and interactive viewers; imports data and the base alone, never a training."""
