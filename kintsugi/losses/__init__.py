"""Losses as pure functions, and the networks of perceptual ones."""
