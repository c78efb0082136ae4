"""A page to look through a labelled dataset, the likeliest mistakes of its labels first."""
