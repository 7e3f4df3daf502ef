"""The configuration of a run: settings, their kinds, and which of them fit together."""

from trainer.config.run_config import Config, value_types

__all__ = ["Config", "value_types"]
