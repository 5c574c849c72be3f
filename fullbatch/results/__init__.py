"""What many runs come to: a ledger of who did what, and tables of means over seeds."""
