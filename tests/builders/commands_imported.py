"""What our commands import, for a Python whose forks need not do it again."""

import accelerate.commands.launch  # noqa: F401
import transformers.trainer  # noqa: F401
from transformers import pipelines  # noqa: F401

from madkd_hf import *  # noqa: F403
from madkd_hf.cli import compare, label, train  # noqa: F401
