"""Architectures, normalisation, foreign checkpoints, and what a network is made of."""
