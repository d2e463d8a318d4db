"""The training loop: distribution, precision, checkpoints, logging."""
