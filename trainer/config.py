"""A run as one frozen value: every setting with its default, range and meaning.

The command line, `--help`, config.json and the check of a resumed run are all
derived from the fields below, so a new setting is one entry here and the line
of code that uses it.
"""

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from trainer.errors import UsageError, one_of

FORMAT_VERSION = 1
UNITS = ("steps", "epochs", "kimg")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training; a step is one generator update on one batch."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Reads `str(duration)` back, such as "30 epochs".

        Raises:
          ValueError: if `text` is not a number and a unit.
        """
        number, _, unit = text.partition(" ")
        if unit not in UNITS or not math.isfinite(float(number)):
            raise ValueError(f"{text!r} is not a number and one of {', '.join(UNITS)}")
        return cls(float(number), unit)

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"

    def images(self, batch_size: int, epoch_size: int) -> int:
        """The same length in images; `epoch_size` is that of the data set."""
        scale = {"steps": batch_size, "epochs": epoch_size, "kimg": 1000}[self.unit]
        return round(self.value * scale)

    def steps(self, batch_size: int, epoch_size: int) -> int:
        """The same length in whole steps, rounded up."""
        return -(-self.images(batch_size, epoch_size) // batch_size)


def setting(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] = (),
    low: float | None = None,
    high: float | None = None,
    may_change: bool = False,
) -> Any:
    """Declares a setting.

    Args:
      default: value where neither the recipe nor the user says otherwise.
      help: its line in --help.
      choices: the values allowed, of a text.
      low, high: the range allowed, both ends included, of a number.
      may_change: whether a run may be resumed with another value.
    """
    metadata = dict(help=help, choices=tuple(choices), low=low, high=high, may_change=may_change)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run.  Rates and schedules count images, not steps."""

    # What is trained.
    recipe: str = setting("dcgan", "settings to start from, by the name of a published system")
    networks: str = setting("", "take the networks of this recipe instead of the recipe's own")
    dataset: str = setting(
        "digits",
        "data set: digits, mnist, fashion_mnist or cifar10; or the path of your own pictures: a "
        "folder or .zip (folders train/ and test/ are splits, those below are classes; "
        "transparency becomes white), or an .npz (x and y, or x_train, y_train, ...)",
    )
    split: str = setting("train", "images to train on", choices=("train", "test", "all"))
    image_size: int = setting(
        0,
        "side of the images in pixels; 0: the data set's own, for your own pictures the smallest "
        "side among them rounded down to a multiple of 4, at least 8 and at most 64",
        low=0,
        high=1024,
    )
    skip_bad_images: bool = setting(
        False, "leave out pictures of your own that cannot be read, instead of stopping"
    )
    conditional: bool = setting(False, "train on labels and draw the class that is asked for")
    horizontal_flip: bool = setting(False, "mirror every other image at random")
    seed: int = setting(0, "seed of weights, data order and noise", low=0, high=2**31 - 1)
    batch_size: int = setting(64, "images per step, over all devices together", low=1)
    length: Duration = setting(Duration(300, "kimg"), "how long to train", low=0, may_change=True)
    init_from: str = setting("", "start from the networks of this run directory")

    # Networks.
    latent_dim: int = setting(100, "size of the latent vector", low=1, high=65536)
    latent_distribution: str = setting(
        "normal",
        "distribution of the latents: N(0, 1) or uniform on [-1, 1]",
        choices=("normal", "uniform"),
    )
    image_range: str = setting(
        "tanh",
        "images in [-1, 1] with a tanh, or in [0, 1] with a sigmoid",
        choices=("tanh", "sigmoid"),
    )
    g_width: float = setting(1.0, "multiplies the generator's filters", low=0.03, high=64)
    d_width: float = setting(1.0, "multiplies the discriminator's filters", low=0.03, high=64)
    g_conditioning: str = setting(
        "concat",
        "how labels enter the generator: next to the latents, times the latents, "
        "or as scale and shift of its batch norm",
        choices=("concat", "multiply", "batchnorm"),
    )
    d_conditioning: str = setting(
        "projection",
        "how labels enter the discriminator: projected on its features, times the "
        "image, or as one more channel",
        choices=("projection", "multiply", "concat"),
    )
    d_spectral_norm: bool = setting(False, "spectral norm on the discriminator's weights")
    initializer: str = setting(
        "glorot",
        "initial weights: Glorot's uniform, N(0, 0.02) or orthogonal",
        choices=("glorot", "normal", "orthogonal"),
    )
    bn_momentum: float = setting(0.99, "momentum of batch norm's moving statistics", low=0, high=1)

    # Objective and updates.
    loss: str = setting(
        "nonsaturating", "adversarial loss", choices=("nonsaturating", "hinge", "least_squares")
    )
    d_update: str = setting(
        "joint",
        "how the discriminator sees reals and fakes: one batch, two batches and one "
        "update, or two updates",
        choices=("joint", "separate", "sequential"),
    )
    simultaneous: bool = setting(
        False, "update both networks from the same weights and the same fakes"
    )
    d_steps: int = setting(1, "discriminator updates per generator update", low=1, high=100)
    repeat_reals: bool = setting(False, "use the same real batch in all d_steps")
    optimizer: str = setting("adam", "optimizer of both networks", choices=("adam", "rmsprop"))
    g_lr: float = setting(2e-4, "learning rate of the generator", low=0, high=10)
    d_lr: float = setting(2e-4, "learning rate of the discriminator", low=0, high=10)
    g_lr_decay_per_kimg: float = setting(
        0.0, "generator's rate is divided by 1 + this times kimg", low=0
    )
    d_lr_decay_per_kimg: float = setting(
        0.0, "discriminator's rate is divided by 1 + this times kimg", low=0
    )
    beta1: float = setting(0.9, "first decay of Adam", low=0, high=0.9999)
    beta2: float = setting(0.999, "second decay of Adam; of RMSprop its only one", low=0, high=1)
    ema_half_life_kimg: float = setting(
        0.0, "half-life of the generator's moving average; 0: no average", low=0
    )

    # Numbers and devices.
    precision: str = setting(
        "auto",
        "number format of the networks; auto: bfloat16 on GPUs of compute capability 8.0 "
        "and up, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    devices: str = setting(
        "auto",
        "auto, gpu, gpu:0,1 (those two), cpu, or cpu:2 (two logical devices)",
        may_change=True,
    )
    deterministic: bool | None = setting(
        None,
        "the same bits in every run on the same hardware; slower on GPUs "
        "(default: on for CPU, off for GPU)",
        may_change=True,
    )

    # Where and how often.
    data_dir: str = setting(
        "", "folder that holds the data sets (default: $TRAINER_DATA_DIR)", may_change=True
    )
    run_dir: str = setting("", "folder of the run (default: runs/RECIPE-DATASET)", may_change=True)
    checkpoint_every: Duration = setting(
        Duration(50, "kimg"), "how often to save; 0: only at the end", low=0, may_change=True
    )
    keep_checkpoints: int = setting(3, "checkpoints kept", low=1, high=1000, may_change=True)
    sample_every: Duration = setting(
        Duration(20, "kimg"),
        "how often to draw samples; 0: only at start and end",
        low=0,
        may_change=True,
    )
    sample_grid: int = setting(
        10,
        "images per row of a sample grid; rows: as many, or one per class",
        low=1,
        high=100,
        may_change=True,
    )
    log_every_secs: float = setting(5.0, "seconds between lines of the log", low=0, may_change=True)
    log_every_steps: int = setting(
        0, "steps between lines of metrics.jsonl; 0: only by time", low=0, may_change=True
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name))
        if self.simultaneous and (self.d_steps > 1 or self.d_update == "sequential"):
            raise UsageError(
                "--simultaneous needs one discriminator update per step: "
                f"not --d_steps={self.d_steps} --d_update={self.d_update}."
            )

    def to_json(self) -> str:
        """The configuration as JSON text, `format_version` first."""
        values = {"format_version": FORMAT_VERSION, **self.as_dict()}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """The settings by name, durations as text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: str(v) if isinstance(v, Duration) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, text: str, source: str) -> "Config":
        """Reads what `to_json` wrote; settings it lacks take their defaults.

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
        try:
            return cls(**cls.parse_values(values))
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None

    @classmethod
    def parse_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Turns durations given as text into values.

        Raises:
          UsageError: for a name that is no setting, or a duration that is none.
        """
        kinds = value_types()
        parsed = {}
        for name, value in values.items():
            if name not in kinds:
                near = difflib.get_close_matches(name, kinds, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise UsageError(f"{name!r} is not a setting.{hint}")
            if Duration in kinds[name] and isinstance(value, str):
                try:
                    value = Duration.parse(value)
                except ValueError as error:
                    raise UsageError(f"{name}: {error}.") from None
            parsed[name] = value
        return parsed

    def replace(self, **changes: Any) -> "Config":
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)


@functools.cache
def value_types() -> dict[str, tuple[type, ...]]:
    """The types that each setting takes, by its name."""
    hints = typing.get_type_hints(Config)
    return {
        f.name: typing.get_args(hints[f.name])
        if isinstance(hints[f.name], types.UnionType)
        else (hints[f.name],)
        for f in dataclasses.fields(Config)
    }


def check_value(field: "dataclasses.Field[Any]", value: Any) -> None:
    """Raises a UsageError that names the setting unless `value` may stand there."""
    name, rules = field.name, field.metadata
    allowed = value_types()[name]
    whole_for_real = float in allowed and type(value) is int
    if type(value) not in allowed and not whole_for_real:
        names = " or ".join(t.__name__ for t in allowed if t is not types.NoneType)
        raise UsageError(f"--{name}={value!r} must be of type {names}.")
    if rules["choices"]:
        one_of(f"--{name}", value, rules["choices"])
    number = value.value if isinstance(value, Duration) else value
    if isinstance(number, (int, float)) and not math.isfinite(number):
        raise UsageError(f"--{name}={value} must be finite.")
    low, high = rules["low"], rules["high"]
    if low is not None and number < low:
        raise UsageError(f"--{name}={value} is too small: it must be {low:g} or more.")
    if high is not None and number > high:
        raise UsageError(f"--{name}={value} is too large: it must be {high:g} or less.")


def frozen_differences(old: Config, new: Config) -> list[str]:
    """Settings that differ and may not when a run goes on, as "name: old -> new"."""
    return [
        f"{f.name}: {getattr(old, f.name)} -> {getattr(new, f.name)}"
        for f in dataclasses.fields(Config)
        if not f.metadata["may_change"] and getattr(old, f.name) != getattr(new, f.name)
    ]
