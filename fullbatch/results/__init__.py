"""Results of many runs: the ledger of jobs, means over seeds, figures, and an HTML page."""
