"""The table of tasks: each row names what there is, and the commands know it."""

import pytest
from transformers.pipelines import PIPELINE_REGISTRY

from madkd_hf.cli.tasks import command_of
from madkd_hf.students.tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_a_row_names_what_there_is(name):
    task = TASKS[name]
    assert task.name == name and task.model.config_class.model_type
    assert callable(getattr(task.model, f"from_{task.starts_from}")) and task.score in task.metrics
    assert set(task.pipelines) <= set(PIPELINE_REGISTRY.get_supported_tasks())
    with pytest.raises(ValueError, match="nowhere"):
        task.check("./nowhere")


@pytest.mark.parametrize("name", TASKS)
def test_the_commands_know_it(name):
    command = command_of(name)
    assert command.task is TASKS[name] and command.task.starts_from in command.arguments.__dataclass_fields__
    assert "base" in command.controls and set(command.about_images) <= set(command.controls)
