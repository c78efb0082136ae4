"""What answers are worth, and the choice of questions by that."""
