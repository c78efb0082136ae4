"""Datasets as users have them: loaded, and checked before anything long begins."""
