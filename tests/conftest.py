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


LONG = """test_documents test_strategies test_users_files test_compare test_compare_detection test_hub_student
test_hub_dataset test_preflight test_labelling test_train_detection test_resume test_hub_detection test_lazy_import
test_labelling_objects test_hostile test_checkpoints test_two_processes""".split()


def pytest_collection_modifyitems(items):
    """Files that take long come first, so that nobody waits for one in the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage():
    """Each training looks for garbage first: not in all that was imported before this file."""
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
