"""One job, from the command line to its exit status."""
