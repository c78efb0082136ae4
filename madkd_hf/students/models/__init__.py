"""The models: the files of this folder travel with saved students, so they import nothing of ours but each other."""
