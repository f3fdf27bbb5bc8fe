"""Simulated subjects: signal equations, anatomy, scanners, chests, and the data sets that are made of them."""
