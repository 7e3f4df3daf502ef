"""A run as one frozen value: every setting with its default, range and meaning.

The command line, `--help`, config.json and the check of a resumed run are all
derived from the fields below, so a new setting is one entry here and the line
of code that uses it.
"""

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from trainer.compatibility import check_together
from trainer.errors import UsageError
from trainer.settings import Duration, check_value, setting

FORMAT_VERSION = 1
NORMS = ("batch", "instance", "layer", "none")
KERNELS = ("plain", "spectral", "weight")
SCHEDULES = ("constant", "linear", "cosine", "inverse_time")


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
        "transparency becomes white), or an .npz (x and y, or x_train, y_train, ...); also at gs://",
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
        "distribution of the latents: N(0, 1), uniform on [-1, 1], or N(0, 1) cut off at 2",
        choices=("normal", "uniform", "truncated_normal"),
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
        "how labels enter the generator: next to the latents, times the latents, or next "
        "to them and as scale and shift of its batch norm",
        choices=("concat", "multiply", "batchnorm"),
    )
    d_conditioning: str = setting(
        "projection",
        "how labels enter the discriminator: projected on its features, times the "
        "image, or as one more channel",
        choices=("projection", "multiply", "concat"),
    )
    g_norm: str = setting("batch", "norm in the generator's hidden layers", choices=NORMS)
    d_norm: str = setting("none", "norm in the discriminator's, all but the first", choices=NORMS)
    g_weights: str = setting(
        "plain", "the generator's kernels: as they are or normalised", choices=KERNELS
    )
    d_weights: str = setting("plain", "norm of the discriminator's kernels", choices=KERNELS)
    d_activation: str = setting(
        "leaky_relu",
        "activation of the discriminator",
        choices=("leaky_relu", "relu", "elu", "tanh", "swish"),
    )
    d_slope: float = setting(0.2, "slope of its leaky_relu below zero", low=0, high=1)
    initializer: str = setting(
        "glorot",
        "initial weights: Glorot's or He's uniform, N(0, 0.02) or orthogonal",
        choices=("glorot", "he", "normal", "orthogonal"),
    )
    bn_momentum: float = setting(0.99, "momentum of batch norm's moving statistics", low=0, high=1)

    # Objective and updates.
    loss: str = setting(
        "nonsaturating",
        "adversarial loss",
        choices=("nonsaturating", "minimax", "least_squares", "hinge", "wasserstein"),
    )
    gradient_penalty: float = setting(
        0.0, "weight of the penalty on D's gradient between reals and fakes (WGAN-GP: 10)", low=0
    )
    d_clip: float = setting(
        0.0, "clip the discriminator's weights to this size after each update (WGAN: 0.01)", low=0
    )
    smooth_real: float = setting(0.0, "label smoothing: reals count 1 - this", low=0, high=0.5)
    smooth_fake: float = setting(
        0.0, "two-sided label smoothing: fakes count this", low=0, high=0.5
    )
    flip_labels: float = setting(
        0.0, "share of the discriminator's images with the label flipped", low=0, high=0.5
    )
    d_input_noise: float = setting(
        0.0, "standard deviation of Gaussian noise on the discriminator's input", low=0, high=10
    )
    d_layer_noise: float = setting(
        0.0, "the same on the inputs of its hidden layers", low=0, high=10
    )
    noise_decay_kimg: float = setting(
        0.0, "kimg over which both noises fall linearly to 0; 0: they stay", low=0
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
    optimizer: str = setting(
        "adam", "optimizer of both networks", choices=("adam", "rmsprop", "sgd")
    )
    g_lr: float = setting(2e-4, "learning rate of the generator", low=0, high=10)
    d_lr: float = setting(2e-4, "learning rate of the discriminator", low=0, high=10)
    g_lr_schedule: str = setting("constant", "how the generator's rate falls", choices=SCHEDULES)
    d_lr_schedule: str = setting("constant", "the same of the discriminator's", choices=SCHEDULES)
    lr_decay_kimg: float = setting(
        0.0, "kimg after which a linear or cosine schedule has reached lr_end", low=0
    )
    lr_end: float = setting(0.0, "share of the rate left then", low=0, high=1)
    g_lr_decay_per_kimg: float = setting(
        0.0, "inverse_time: the generator's rate is divided by 1 + this times kimg", low=0
    )
    d_lr_decay_per_kimg: float = setting(
        0.0, "inverse_time: the discriminator's rate is divided by 1 + this times kimg", low=0
    )
    beta1: float = setting(0.9, "first decay of Adam", low=0, high=0.9999)
    beta2: float = setting(0.999, "second decay of Adam; of RMSprop its only one", low=0, high=1)
    momentum: float = setting(0.9, "momentum of SGD", low=0, high=0.9999)
    ema_half_life_kimg: float = setting(
        0.0, "half-life of the generator's moving average; 0: no average", low=0
    )

    # Numbers and devices.
    precision: str = setting(
        "auto",
        "number format of the networks; auto: bfloat16 on GPUs of compute capability 8.0 "
        "and up, float16 from 7.0, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    batch_per_replica: int = setting(
        0,
        "images that a device takes at once; a larger share of the batch is accumulated, with "
        "the same result but for batch norm, whose statistics are of those images; 0: all",
        low=0,
        may_change=True,
    )
    devices: str = setting(
        "auto",
        "auto, gpu, gpu:0,1 (those two), cpu, or cpu:2 (two logical devices)",
        may_change=True,
    )
    workers: str = setting(
        "",
        "several machines: their addresses as HOST:PORT,HOST:PORT, the first of them the chief; "
        "job-{0..3}.svc:2222 stands for four; TF_CONFIG in the environment goes before it",
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
        "",
        "folder that holds the data sets, or gs://BUCKET/PATH (default: $TRAINER_DATA_DIR)",
        may_change=True,
    )
    run_dir: str = setting(
        "",
        "folder of the run, or gs://BUCKET/PATH (default: runs/RECIPE-DATASET)",
        may_change=True,
    )
    scratch_dir: str = setting(
        "",
        "folder for the local copy of a run in a bucket (default: in the cache)",
        may_change=True,
    )
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
    max_failed_saves: int = setting(
        3,
        "saves that may fail in a row, on a full disk say, before the run ends",
        low=0,
        high=100,
        may_change=True,
    )
    max_rollbacks: int = setting(
        3,
        "how often a run whose numbers are no longer finite goes back to its last checkpoint "
        "and on with other noise, before it ends with exit code 70",
        low=0,
        high=1000,
        may_change=True,
    )
    collapse_kimg: float = setting(
        50.0,
        "warn of collapse once D has been right on every image, or all samples alike, for so "
        "many kimg; 0: never",
        low=0,
        may_change=True,
    )
    stop_on_collapse: bool = setting(False, "end the run then, with exit code 70", may_change=True)
    log_every_secs: float = setting(5.0, "seconds between lines of the log", low=0, may_change=True)
    log_every_steps: int = setting(
        0, "steps between lines of metrics.jsonl; 0: only by time", low=0, may_change=True
    )
    log_format: str = setting(
        "text",
        "lines for people, or JSON objects as Cloud Logging reads them",
        choices=("text", "json"),
        may_change=True,
    )
    heartbeat: str = setting(
        "",
        "file that the training loop writes every second or so, for `doctor --liveness`",
        may_change=True,
    )
    metrics_port: int = setting(
        0, "port of a Prometheus endpoint; 0: none", low=0, high=65535, may_change=True
    )
    max_hours: float = setting(
        0.0,
        "save and stop with exit code 42 after so many hours of this process; 0: no limit",
        low=0,
        may_change=True,
    )
    profile: int = setting(
        0,
        "steps to trace for TensorBoard's profiler, after the first 10 of this process; 0: none",
        low=0,
        high=1000,
        may_change=True,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name), value_types()[field.name])
        check_together(self)

    def to_json(self) -> str:
        """The configuration as JSON text, `format_version` first."""
        values = {"format_version": FORMAT_VERSION, **self.as_dict()}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def shared_json(self) -> str:
        """The settings that must be the same on all machines of a run, as JSON text."""
        own = (
            "data_dir", "run_dir", "scratch_dir", "devices", "workers", "heartbeat", "metrics_port",
        )  # fmt: skip
        return json.dumps({k: v for k, v in self.as_dict().items() if k not in own})

    def as_dict(self) -> dict[str, Any]:
        """The settings by name, durations as text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: str(v) if isinstance(v, Duration) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "Config":
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
