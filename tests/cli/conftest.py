from pathlib import Path

import pytest
from builders.commands import EASY_VQA, recipe


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """Some images of easy-VQA with their answers."""
    folder = tmp_path_factory.mktemp("labelled")
    recipe("attach_aspects", "--config", EASY_VQA / "attach.yaml", "--output_dir", folder, "--limit", "30")
    return folder
