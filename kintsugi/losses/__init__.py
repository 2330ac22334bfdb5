"""Losses as pure functions, and the networks that perceptual ones need."""
