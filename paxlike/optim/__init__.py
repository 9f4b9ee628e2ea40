"""Optimizers (`optimizer`) and learning-rate schedules (`schedules`)."""
