"""Aspect datasets and students on the Hub: prepared as a folder, checked, and pushed as one commit."""
