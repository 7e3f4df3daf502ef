"""Random flags, files and settings are either accepted or cause a one-line error."""

import dataclasses
import json
import re
import string

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.runs import records, steps
from trainer import recipes
from trainer.commands.flags import config_flags
from trainer.commands.flags.command_line import CommandLine
from trainer.config import Config, value_types
from trainer.data.images import ImageSet
from trainer.errors import CheckpointError, ExitCode, HelpRequested, TrainerError, UsageError
from trainer.models.objective import OBJECTIVES
from trainer.run_dir.definition import Definition
from trainer.run_dir.directory import RunDir

NAMES = [*value_types(), *config_flags.LENGTHS, "help", "fresh", "dry_run", "nonsense", "", "-"]
WORDS = st.one_of(
    st.text(max_size=8),
    st.text(string.printable, max_size=8),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "0", "-1", "1e400", "nan", "true", "auto", "cpu:2", "..", "/", "é ü", "1 kimg", "0x7"]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), WORDS), max_size=4), st.booleans())
def test_any_flags_give_a_configuration_or_a_usage_error(pairs, joined):
    arguments = []
    for name, value in pairs:
        arguments += [f"--{name}={value}"] if joined else [f"--{name}", value]
    line = CommandLine("train", "")
    config_flags.define_settings(line)
    line.boolean("fresh", "", default=False)
    line.boolean("dry_run", "", default=False)
    try:
        config = config_flags.resolve(line.parse(arguments), {})[0]
    except HelpRequested:
        return
    except TrainerError as error:
        assert error.exit_code == ExitCode.USAGE
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert Config.from_json(config.to_json(), "config.json") == config


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(["format_version", *value_types()]), VALUES, max_size=3))
def test_any_edit_of_config_json_gives_a_configuration_or_a_usage_error(changes):
    values = json.loads(recipes.resolve({}).to_json())
    text = json.dumps({**values, **changes})
    try:
        config = Config.from_json(text, "config.json")
    except UsageError as error:
        assert str(error).startswith("config.json")
        assert "\n" not in str(error)
    else:
        assert dataclasses.asdict(config)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["config.json", "data.json"]), st.data())
def test_any_damage_to_a_run_directory_is_accepted_or_a_checkpoint_error(tmp_path, name, draws):
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1)
    data = ImageSet(images, np.arange(4, dtype=np.int32), ("a", "b", "c", "d"))
    config = recipes.resolve(dict(run_dir=str(tmp_path / "run")))
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir(exist_ok=True)
    run_dir.config.write_text(config.to_json())
    run_dir.dataset.write_text(data.describe().to_json())
    path = run_dir.path / name
    content = bytearray(path.read_bytes())
    for _ in range(draws.draw(st.integers(1, 3))):
        at = draws.draw(st.integers(0, len(content) - 1))
        content[at : at + draws.draw(st.integers(0, 5))] = draws.draw(st.binary(max_size=3))
        content = content or bytearray(b"x")
    path.write_bytes(bytes(content))
    try:
        Definition(config=config, dataset=data.describe(), start={}).compare(run_dir)
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_damaged_metrics_are_moved_to_another_file_on_resuming(tiny, run, tmp_path):
    config = tiny(recipe="mlp", length=steps(4), log_every_steps=1)
    run(config)
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_bytes("\n".join([lines[0], "{torn", *lines[1:], ""]).encode() + b"\xff\xfe\n")
    output = run(config.replace(length=steps(6)))
    assert "WARNING: " in output
    assert "metrics.jsonl is damaged after line 1" in output
    assert [line["step"] for line in records(tmp_path / "run")] == [1, 5, 6]
    assert b"{torn" in (tmp_path / "run" / "metrics.jsonl.damaged-1").read_bytes()


CHOICES = {
    name: field.metadata["choices"]
    for name, field in ((f.name, f) for f in dataclasses.fields(Config))
    if field.metadata["choices"] and name not in ("split", "precision")
}
SETTINGS = st.fixed_dictionaries(
    {"recipe": st.sampled_from(list(recipes.RECIPES))},
    optional={
        **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
        **{
            name: st.booleans()
            for name in (
                "conditional",
                "horizontal_flip",
                "repeat_reals",
            )
        },
        **{
            name: st.sampled_from([0.0, 0.1, 0.5])
            for name in (
                "smooth_real", "smooth_fake", "flip_labels", "d_input_noise", "d_layer_noise",
                "gradient_penalty", "r1", "r2", "d_clip", "lr_decay_kimg", "g_lr_decay_per_kimg",
                "d_lr_decay_per_kimg", "ema_half_life_kimg", "noise_decay_kimg",
            )
        },
        **{
            name: st.sampled_from(["constant", "linear", "cosine", "inverse_time"])
            for name in ("g_lr_schedule", "d_lr_schedule")
        },
        "d_lr": st.sampled_from([1e-4, "linear 1e-3 0 over 50%", "inverse_time 1e-3 1 per kimg"]),
        "latent_dim": st.sampled_from([1, 3, 100]),
        "batch_size": st.sampled_from([1, 2, 6]),
        "batch_per_replica": st.sampled_from([0, 1, 2]),
        "d_steps": st.sampled_from([1, 2]),
        "penalty_every": st.sampled_from([1, 2]),
        "image_size": st.sampled_from([0, 4, 8, 9, 12, 20, 32, 64]),
        "networks": st.sampled_from(list(recipes.RECIPES)),
        "loss": st.sampled_from(list(OBJECTIVES)),
        "precision": st.sampled_from(["float32", "tf32", "bfloat16", "float16"]),
        "devices": st.sampled_from(["cpu:1", "cpu:2"]),
    },
)  # fmt: skip


def _with_an_effect(tiny, given):
    """Returns settings without those that are refused because they have no effect."""
    try:
        tiny(**given)
    except UsageError as error:
        if found := re.match(r"--(\w+)=.* has no effect", str(error)):
            rest = {name: value for name, value in given.items() if name != found[1]}
            return _with_an_effect(tiny, rest)
    return given


@pytest.mark.faults
@settings(
    max_examples=30, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(SETTINGS)
def test_any_settings_train_or_raise_a_one_line_error(tmp_path_factory, tiny, run, values):
    given = {**values, "length": steps(2), "run_dir": str(tmp_path_factory.mktemp("fuzz") / "run")}
    try:
        run(tiny(**_with_an_effect(tiny, given)))
    except TrainerError as error:
        assert error.exit_code in (ExitCode.USAGE, ExitCode.DIVERGED)
        assert "\n" not in str(error)
