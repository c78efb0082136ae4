"""What the answers to each question are worth, and the choice of questions by that."""
