import gc
import os

import pytest
from builders.local_hub import LocalHub


# Before torch and anything of Hugging Face is imported: no test waits for a Hub that is not there, and those that want
# one meet ours, through clients that are as installed.
HUB = LocalHub().__enter__()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process on each core is busy enough
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": HUB.url, "HF_HUB_DISABLE_XET": "1"}
os.environ.pop("HF_TOKEN", None)


def pytest_collection_finish():
    """Each training collects garbage first: it need not look through all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def child_hub():
    """A Hub for child processes, with what others have left on it."""
    return HUB


@pytest.fixture
def hub(monkeypatch):
    """A Hub with nothing on it, that this process can reach; its owner is logged in."""
    HUB.reset()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", HUB.token)
    return HUB
