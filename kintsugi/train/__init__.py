"""The training loop and its parts: settings, checkpoints, ranks, optimizers, logging."""
