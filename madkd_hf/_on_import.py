"""Registers the students with transformers' Auto classes and pipelines when transformers' own modules are imported.

So `import madkd_hf` costs nothing, and Auto classes and `pipeline` know the students all the same, whichever of the
two packages a program imports first.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from ._torchvision import hide_if_broken


def _register_configurations() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .students.models.configuration_madkd import MadkdConfig
    from .students.models.configuration_madkd_detection import MadkdDetectionConfig

    for config in (MadkdConfig, MadkdDetectionConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import AutoModelForImageClassification, AutoModelForObjectDetection

    from .students.models.modeling_madkd import MadkdForImageClassification
    from .students.models.modeling_madkd_detection import MadkdForObjectDetection

    for auto, model in (
        (AutoModelForImageClassification, MadkdForImageClassification),
        (AutoModelForObjectDetection, MadkdForObjectDetection),
    ):
        auto.register(model.config_class, model, exist_ok=True)


def _register_pipelines() -> None:
    from transformers.models.auto.modeling_auto import AutoModelForImageClassification, AutoModelForObjectDetection
    from transformers.pipelines import PIPELINE_REGISTRY

    from .students.models.modeling_madkd import AspectClassificationPipeline
    from .students.models.modeling_madkd_detection import AspectDetectionPipeline

    for task, pipeline, auto in (
        ("aspect-classification", AspectClassificationPipeline, AutoModelForImageClassification),
        ("aspect-detection", AspectDetectionPipeline, AutoModelForObjectDetection),
    ):
        PIPELINE_REGISTRY.register_pipeline(task, pipeline, pt_model=auto, type="image")


REGISTER = {  # module of transformers -> what to do when it is there
    "transformers.models.auto.configuration_auto": _register_configurations,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.pipelines": _register_pipelines,
}
LOOKS_FOR_TORCHVISION = "transformers.utils.import_utils"
NEEDED = (  # what the registered classes import
    "transformers.modeling_utils",
    "madkd_hf.students.models.aspects_of_madkd",
    "madkd_hf.students.models.configuration_madkd",
    "madkd_hf.students.models.modeling_madkd",
    "madkd_hf.students.models.configuration_madkd_detection",
    "madkd_hf.students.models.queries_of_madkd",
    "madkd_hf.students.models.modeling_madkd_detection",
)
WATCHED = {LOOKS_FOR_TORCHVISION, *REGISTER, *NEEDED}


class _Finder:
    """Finds the watched modules as ever, and registers after the import of the outermost one.

    They import one another, and what is to be registered needs them complete.
    """

    def __init__(self):
        self.thread = threading.local()
        self.registered = set()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in WATCHED else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            outer, self.thread.outer = getattr(self.thread, "outer", None), name
            try:
                execute(module)
            finally:
                self.thread.outer = outer
            if name == LOOKS_FOR_TORCHVISION:
                hide_if_broken()
            elif outer is None:
                self.register()

        spec.loader.exec_module = execute_and_register
        return spec

    def register(self) -> None:
        """Whatever can be registered and is not yet."""
        for name, register in REGISTER.items():
            if name in sys.modules and name not in self.registered:
                self.registered.add(name)
                register()


def prepare() -> None:
    """Register now where transformers is imported already, and else when it is."""
    if LOOKS_FOR_TORCHVISION in sys.modules:
        hide_if_broken()
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    finder.register()
