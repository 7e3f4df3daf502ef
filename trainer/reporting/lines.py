"""The lines of metrics.jsonl, which all writers show, and the progress of a run."""

import dataclasses
from typing import Any

from trainer.config.compatibility import PENALTIES
from trainer.metrics import registry

Line = dict[str, Any]

SCALARS = (
    "images_per_sec", "utilisation", "data_wait", "d_loss", "g_loss", "d_acc", "d_real_acc",
    "d_fake_acc", "g_acc", "d_grad_norm", "g_grad_norm", *PENALTIES,
    "augment_strength",
)  # fmt: skip
EVENTS = ("collapse", "rollbacks", "failed_saves", "failed_uploads")
EVALUATIONS = (*registry.column_names(), "evaluated_kimg", "evaluate_secs")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
      share: completed share of the steps, 0 to 1.
      kimg: thousand images seen.
      total_kimg: thousand images at the end of the run.
      secs_left: estimated seconds to the end.
    """

    share: float
    kimg: float
    total_kimg: float
    secs_left: float
