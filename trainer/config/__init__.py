"""The configuration of a run: settings, their kinds, and which of them fit together."""

from trainer.config.all_settings import value_types
from trainer.config.run_config import Config

__all__ = ["Config", "value_types"]
