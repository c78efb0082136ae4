"""What happens between the steps of a training."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback


class EarlyStopping(EarlyStoppingCallback):
    """As that of transformers; and a training that goes on counts on from where it was interrupted."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        before = state.stateful_callbacks.get(type(self).__name__) or {}
        self.early_stopping_patience_counter = before.get("attributes", {}).get("early_stopping_patience_counter", 0)


class TellEpoch(TrainerCallback):
    """Tells the collator which epoch begins, or goes on after a checkpoint."""

    def __init__(self, collator: Any):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.set_epoch(int(state.epoch or 0))
