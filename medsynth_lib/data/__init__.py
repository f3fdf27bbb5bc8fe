"""Simulated scanners, manifests, preprocessing, augmentation and loaders."""
