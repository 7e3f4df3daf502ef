"""The configuration of a run as one immutable value.

The command line, `--help`, config.json and the checks of a resumed run are derived from its
fields, which are defined in common_settings.py, model_settings.py and operation_settings.py.  A
new setting is one entry there, in the class of its group, and the code that uses it.
"""

import dataclasses
import difflib
import json
import types
from collections.abc import Mapping
from typing import Any

from trainer.config import hyperparameters, image_size, replaced, schedules
from trainer.config.all_settings import AllSettings, scheduled, value_types
from trainer.config.compatibility import check_together
from trainer.config.image_size import ImageSize
from trainer.config.schedules import Schedule
from trainer.config.settings import Duration
from trainer.config.update_rule import UpdateRule
from trainer.errors import UsageError

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AllSettings):
    """All settings of a run, which fit together.  Schedules count images, not steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_together(self)

    @property
    def updates(self) -> UpdateRule:
        """The order of the updates of a step."""
        return UpdateRule.parse(self.update_rule)

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of the images in pixels; (0, 0) if the data set determines them."""
        return image_size.sides_of(self.image_size)

    @property
    def hyperparameter_values(self) -> dict[str, Any]:
        """The recipe's own hyper-parameters by name."""
        return hyperparameters.parse(self.hyperparameters)

    def to_json(self) -> str:
        """Returns the content of config.json."""
        values = {"format_version": FORMAT_VERSION, **self.as_dict()}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def shared_json(self) -> str:
        """Returns the settings that must be equal on all workers, as JSON."""
        own = (
            "data_dir", "run_dir", "tensorboard_dir", "model_dir", "scratch_dir", "devices",
            "workers", "heartbeat", "metrics_port", "cache_dir", "cache_gib",
        )  # fmt: skip
        return json.dumps({k: v for k, v in self.as_dict().items() if k not in own})

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings by name, durations and schedules as text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        as_text = (Duration, ImageSize, Schedule)
        return {k: str(v) if isinstance(v, as_text) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "Config":
        """Reads what `to_json` wrote.

        A setting that is missing takes its legacy value, which describes how the version that
        started the run behaved.

        Raises:
          UsageError: naming `source`, if it is no such text.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{source} is not JSON ({error}).") from None
        if not isinstance(values, dict):
            raise UsageError(f"{source} holds no configuration.")
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{source} has format_version {version!r}; this version reads {FORMAT_VERSION}."
            )
        legacy = legacy_values()
        try:
            return cls(**{**legacy, **cls.parse_values(values, legacy)})
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None

    @classmethod
    def parse_values(
        cls, values: Mapping[str, Any], base: Mapping[str, Any] = types.MappingProxyType({})
    ) -> dict[str, Any]:
        """Converts durations and schedules that are given as text, and replaced settings.

        Args:
          values: settings by name.
          base: the settings that `values` override.

        Raises:
          UsageError: for a name that is no setting, or a text that is no duration or schedule.
        """
        kinds, fields = value_types(), {field.name: field for field in dataclasses.fields(cls)}
        old, parsed = {}, {}
        for name, value in values.items():
            if name in replaced.NAMES:
                old[name] = value
                continue
            if name not in kinds:
                near = difflib.get_close_matches(name, kinds, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise UsageError(f"{name!r} is not a setting.{hint}")
            parsed[name] = _parse(fields[name], kinds[name], value)
        return replaced.translate(
            old, parsed, without=lambda name: base.get(name, fields[name].default)
        )

    def per_run_settings(self) -> dict[str, Any]:
        """Returns the settings that a resumed run keeps, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata["per_start"]
        }

    def replace(self, **changes: Any) -> "Config":
        """Returns a copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def with_spans_in_kimg(self, epoch_size: int) -> "Config":
        """Returns a copy whose schedules have their spans in kimg, not as shares of the run.

        Args:
          epoch_size: number of images in the data set.
        """
        images = self.length.images(self.batch_size, epoch_size)
        values = {name: getattr(self, name) for name in scheduled()}
        return self.replace(
            **{k: v.in_kimg(images) for k, v in values.items() if isinstance(v, Schedule)}
        )


def _parse(field: "dataclasses.Field[Any]", kinds: tuple[type, ...], value: Any) -> Any:
    """Returns the value of a setting, which may be given as text."""
    if not isinstance(value, str):
        # Choices may look like numbers, as those of --channels do.
        return str(value) if str(value) in field.metadata["choices"] else value
    try:
        if Duration in kinds:
            return Duration.parse(value)
        if ImageSize in kinds:
            return image_size.parse(value)
        if Schedule in kinds and value not in field.metadata["choices"]:
            return schedules.parse(value)
    except ValueError as error:
        if Duration in kinds:
            raise UsageError(f"{field.name}: {error}.") from None
        if ImageSize in kinds:
            raise UsageError(f"--{field.name}={value}: {error}.") from None
        forms = ", ".join(repr(form) for form in (*field.metadata["choices"], *schedules.SYNTAX))
        raise UsageError(
            f"--{field.name}={value!r} is not valid ({error}). Give a number or one of the forms "
            f"{forms}."
        ) from None
    return value


def legacy_values() -> dict[str, Any]:
    """Returns the values that settings take in runs of versions that did not have them."""
    return {
        field.name: field.metadata["legacy"]
        for field in dataclasses.fields(Config)
        if field.metadata["legacy"] is not dataclasses.MISSING
    }
