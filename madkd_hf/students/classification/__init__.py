"""Students that classify: any image classifier of transformers, with yes/no aspects beside its classes."""
