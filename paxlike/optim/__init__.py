"""How parameters are updated: `schedules`, `optimizer`."""
