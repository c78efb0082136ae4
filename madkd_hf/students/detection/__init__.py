"""Students that detect objects: any query-based detector of transformers, with yes/no aspects beside its classes."""
