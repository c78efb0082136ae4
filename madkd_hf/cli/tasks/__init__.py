"""What a command has to know of a task: one module each."""
