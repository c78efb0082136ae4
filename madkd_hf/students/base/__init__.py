"""What all students share: the trainer, its arguments, what is saved."""
