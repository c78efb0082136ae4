"""A torchvision that is installed and cannot be imported breaks transformers: here it counts as absent.

It is one that was built for another torch. Nothing in this package needs it, and transformers has image processors
that do without.
"""

import importlib
import importlib.util
import logging
import sys


def hide_if_broken() -> None:
    """Let transformers find no torchvision, if the one that is there cannot be imported."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision.transforms.v2.functional")  # what transformers takes from it
    except Exception as error:  # "operator torchvision::nms does not exist", a library that is missing, ...
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _let_transformers_find_none()
        import torch

        logging.getLogger(__name__).warning(
            f"torchvision is installed and cannot be imported ({error}), so it is left out: remove it (pip uninstall "
            f"torchvision), or install the one that was built for torch {torch.__version__}."
        )


def _let_transformers_find_none() -> None:
    """transformers looks for the package, without importing it, and remembers what it found."""
    sys.modules["torchvision"] = None  # such a module cannot be found
    try:
        import_utils = importlib.import_module("transformers.utils.import_utils")
        for is_available in (import_utils.is_torchvision_available, import_utils.is_torchvision_v2_available):
            is_available.cache_clear()
            is_available()
    finally:
        del sys.modules["torchvision"]
