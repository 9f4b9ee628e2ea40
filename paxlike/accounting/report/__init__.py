"""What `paxlike report` says of runs: `summary` (numbers), `table` (terminal), `page` (one HTML file)."""
