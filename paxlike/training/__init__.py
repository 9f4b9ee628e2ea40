"""The training loop: steps, loss, checkpoints, recovery, metrics and the run directory."""
