"""Small models that learn classes and answers."""
