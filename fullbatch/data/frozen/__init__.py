"""Frozen augmented copies of a data set, in LMDB."""
