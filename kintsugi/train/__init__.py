"""The training loop and what it needs: settings, checkpoints, ranks, logging."""
