"""Reports of runs: `summary` (numbers), `table` (terminal) and `page` (one HTML file)."""
