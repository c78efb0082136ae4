import os


# Before anything of Hugging Face is imported: no test waits for a Hub that is not there.
os.environ["HF_HUB_OFFLINE"] = "1"
