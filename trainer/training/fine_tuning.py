"""Initialises the networks of a new run from those of another run (--init_from)."""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.config import Config
from trainer.config.dataset import DatasetDescription, ImageShape
from trainer.config.model_settings import Networks
from trainer.errors import CheckpointError, UsageError
from trainer.models import matching
from trainer.models.matching import WeightLayer
from trainer.recipes import files
from trainer.recipes.networks import build_networks
from trainer.run_dir.checkpoints import load_networks
from trainer.run_dir.directory import RunDir

# Smallest share of the weights of each network that must be taken over, class embeddings aside.
# `dcgan` takes over 9% of the generator from 28 to 32 pixels, and 3% from 28 to 64.
MIN_SHARE = 0.05
# Differences that can change the shape of any weight.  Those of the image size and of the classes
# are not among them: they leave many weights as they are.
SHAPING = (
    "networks", "hyperparameters", "channels", "latent_dim", "g_width", "d_width",
    "g_conditioning", "d_conditioning", "g_norm", "d_norm", "g_upsampling", "g_weights",
    "d_weights",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class RunNetworks:
    """The networks of a run, and what determines their shapes.

    Attributes:
      config: the configuration of the run.
      data: its data set.
      networks: its networks by their names in checkpoints.
    """

    config: Config
    data: DatasetDescription
    networks: Mapping[str, keras.Model]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that the networks distinguish; none if they take no labels."""
        return self.data.class_names if self.config.conditional else ()


@dataclasses.dataclass(frozen=True)
class LayerTransfer:
    """What a layer takes over.

    Attributes:
      layer: name of the layer.
      source: name of the matching layer of the other run, or None.
      weights: number of its weights.
      taken_over: how many of them are taken over; the others begin anew.
    """

    layer: str
    source: str | None
    weights: int
    taken_over: int


@dataclasses.dataclass(frozen=True, eq=False)
class Transfer:
    """The weights that a new run takes over.

    Attributes:
      checkpoint: the checkpoint that was loaded.
      differences: differences between the runs, as "old -> new" by name.
      classes: names of the classes whose weights are taken over.
      layers: what each layer takes over, by network.
      frozen: names of the layers of the discriminator that are not trained.
      values: the new values of the variables that take over weights.
    """

    checkpoint: Path
    differences: Mapping[str, str]
    classes: Sequence[str]
    layers: Mapping[str, Sequence[LayerTransfer]]
    frozen: Sequence[str]
    values: Sequence[tuple[keras.Variable, np.ndarray]]

    def apply(self) -> None:
        """Assigns the weights that are taken over."""
        for variable, value in self.values:
            variable.assign(value)


@dataclasses.dataclass(frozen=True, eq=False)
class _Match:
    """The layers of one network in both runs, and which of them match."""

    network: str
    old: Sequence[WeightLayer]
    new: Sequence[WeightLayer]
    pairs: matching.Pairs


def plan(run_dir: RunDir, new: RunNetworks) -> Transfer:
    """Returns the weights that a new run takes over from the run in a directory.

    Nothing is changed.  An average that the other run does not have is initialised from its
    generator.

    Args:
      run_dir: the run directory of the other run.
      new: the new run.

    Raises:
      UsageError: if the networks do not fit; it names the settings that differ.
      CheckpointError: if the other run has no checkpoint that can be loaded.
    """
    old, checkpoint = _load(run_dir, new.config.init_from)
    differences = _differences(old, new)
    matches = _match(old, new)
    if any(name in SHAPING for name in differences):
        _check_all_match(old, new, matches, differences)
    transfers = {match.network: list(_transfers(old, new, match)) for match in matches}
    layers = {name: [record for record, _ in found] for name, found in transfers.items()}
    for match in matches:
        _check_share(new, match, layers[match.network], differences)
    discriminator = new.networks["discriminator"]
    frozen = [x.name for x in discriminator.layers if x.weights and not x.trainable]
    _check_frozen(new, layers["discriminator"], frozen)
    return Transfer(
        checkpoint,
        differences,
        [name for name in new.class_names if name in old.class_names],
        layers,
        frozen,
        [pair for found in transfers.values() for _, values in found for pair in values],
    )


def _load(run_dir: RunDir, flag: str) -> tuple[RunNetworks, Path]:
    """Builds the networks of a run as its own settings have them, and loads its checkpoint."""
    run_dir.check_is_run("init_from")
    config, data = run_dir.read_config(), run_dir.read_dataset()
    files.load_copies(run_dir.recipes, config)
    generator, discriminator = build_networks(config, data.shape)
    networks = dict(generator=generator, discriminator=discriminator)
    if config.ema_half_life_kimg:
        networks["average"] = keras.models.clone_model(generator)
    try:
        checkpoint = load_networks(run_dir.checkpoints, networks)
    except CheckpointError as error:
        raise CheckpointError(f"--init_from={flag}: {error}") from None
    networks.setdefault("average", generator)
    return RunNetworks(config, data, networks), checkpoint


def _differences(old: RunNetworks, new: RunNetworks) -> dict[str, str]:
    """Returns the differences of the data, the networks and their settings."""
    values: dict[str, tuple[Any, Any]] = {
        "networks": (old.config.networks, new.config.networks),
        "hyperparameters": (old.config.hyperparameters, new.config.hyperparameters),
        "image_size": (old.data.size, new.data.size),
        "channels": (old.data.channels, new.data.channels),
        "conditional": (old.config.conditional, new.config.conditional),
    }
    both = old.config.conditional and new.config.conditional
    if both:
        values["classes"] = (len(old.class_names), len(new.class_names))
        values["class_names"] = (", ".join(old.class_names), ", ".join(new.class_names))
    for field in dataclasses.fields(Networks):
        if both or not field.name.endswith("_conditioning"):
            values[field.name] = (getattr(old.config, field.name), getattr(new.config, field.name))
    return {name: f"{_short(a)} -> {_short(b)}" for name, (a, b) in values.items() if a != b}


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), 60, placeholder=" ...")


def _match(old: RunNetworks, new: RunNetworks) -> list[_Match]:
    """Matches the layers of each network of a new run with those of the other run."""
    by_class = old.class_names != new.class_names
    old_layers, new_layers = _layers(old, by_class), _layers(new, by_class)
    return [
        _Match(
            name,
            old_layers[name],
            new_layers[name],
            matching.match(old_layers[name], new_layers[name], image_first=name == "discriminator"),
        )
        for name in new.networks
    ]


def _layers(run: RunNetworks, by_class: bool) -> dict[str, list[WeightLayer]]:
    """Returns the weight layers of each network, with their class rows if `by_class`."""
    classes = len(run.class_names)
    twins: dict[str, keras.Model] = {}
    if by_class and classes:
        shape = run.data.shape
        more = ImageShape(*shape.sides, shape.channels, shape.classes + 1)
        generator, discriminator = build_networks(run.config, more)
        twins = dict(generator=generator, average=generator, discriminator=discriminator)
    return {
        name: matching.weight_layers(network, classes, twins.get(name))
        for name, network in run.networks.items()
    }


def _check_all_match(
    old: RunNetworks,
    new: RunNetworks,
    matches: Sequence[_Match],
    differences: Mapping[str, str],
) -> None:
    """Raises a UsageError if a layer has no match although both runs have the same inputs."""
    same_inputs = old.config.conditional == new.config.conditional
    for match in matches:
        unmatched = [
            layer
            for layers, indices in (
                (match.old, match.pairs.values()),
                (match.new, match.pairs.keys()),
            )
            for index, layer in enumerate(layers)
            if index not in indices and (layer.on_path or same_inputs)
        ]
        if unmatched:
            raise UsageError(_mismatch(old, new, differences))


def _mismatch(old: RunNetworks, new: RunNetworks, differences: Mapping[str, str]) -> str:
    shaping = {name: text for name, text in differences.items() if name in SHAPING}
    remedies = []
    for name in (name for name in shaping if name != "channels"):
        value = getattr(old.config, name)
        remedies.append(f"--{name}={value:g}" if name.endswith("width") else f"--{name}={value}")
    use = f"Use {' '.join(remedies)}, or leave out --init_from." if remedies else ""
    if "channels" in shaping:
        use = f"{_channels_remedy(old.data.channels, new.data.channels)} {use}".strip()
    listed = "; ".join(f"{name}: {text}" for name, text in shaping.items())
    return (
        f"--init_from={new.config.init_from}: the networks of that run do not fit this run "
        f"({listed}). {use}"
    )


def _channels_remedy(channels: int, others: int) -> str:
    """Returns what to do if a run on images of so many channels is to continue with others."""
    kinds = {1: "grayscale", 3: "colour", 4: "transparent"}
    theirs, yours = kinds[channels], kinds[others]
    return (
        f"That run draws {theirs} images and cannot be fine-tuned to {yours} images. Use "
        f"--channels={channels}, name a run on {yours} images, or leave out --init_from."
    )


def _transfers(
    old: RunNetworks, new: RunNetworks, match: _Match
) -> Iterator[tuple[LayerTransfer, list[tuple[keras.Variable, np.ndarray]]]]:
    """Yields what each layer of a network takes over, and the values of its variables."""
    positions = {class_name: k for k, class_name in enumerate(old.class_names)}
    old_classes = {
        k: positions[class_name]
        for k, class_name in enumerate(new.class_names)
        if class_name in positions
    }
    for index, layer in enumerate(match.new):
        values: dict[str, tuple[np.ndarray, int]] = {}
        source = None
        if index in match.pairs:
            matched = match.old[match.pairs[index]]
            values = matching.taken_over(matched, layer, old_classes)
            source = matched.layer.name if values else None
        count = sum(copied for _, copied in values.values())
        record = LayerTransfer(layer.layer.name, source, layer.size, count)
        yield record, [(layer.weights[key], value) for key, (value, _) in values.items()]


def _check_share(
    new: RunNetworks,
    match: _Match,
    records: Sequence[LayerTransfer],
    differences: Mapping[str, str],
) -> None:
    """Raises a UsageError if too few weights of a network would be taken over."""
    counted = [record for layer, record in zip(match.new, records, strict=True) if layer.on_path]
    total = sum(record.weights for record in counted)
    share = sum(record.taken_over for record in counted) / max(1, total)
    if share < MIN_SHARE:
        listed = "; ".join(f"{name}: {text}" for name, text in differences.items())
        raise UsageError(
            f"--init_from={new.config.init_from}: only {share:.1%} of the weights of the "
            f"{match.network} fit this run, and at least {MIN_SHARE:.0%} must ({listed}). Choose "
            "settings nearer to those of that run, or leave out --init_from."
        )


def _check_frozen(
    new: RunNetworks, records: Sequence[LayerTransfer], frozen: Sequence[str]
) -> None:
    """Raises a UsageError if a frozen layer would keep its random initial weights."""
    for record in records:
        if record.layer in frozen and record.taken_over < record.weights:
            raise UsageError(
                f"--d_freeze_layers={new.config.d_freeze_layers} would freeze the layer "
                f"{record.layer}, which begins anew because it does not fit the networks of "
                f"--init_from={new.config.init_from}. Use a smaller number."
            )
