"""Losses as pure functions, and the networks on which perceptual losses are based."""
