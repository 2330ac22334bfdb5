"""Pretext tasks, whose training targets come from the images or clips themselves, one file each."""
