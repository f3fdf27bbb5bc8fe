"""Figures and interactive viewers; imports no training code."""
