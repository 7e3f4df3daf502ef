"""Messages at the start and at the end of a run."""

import pytest

from tests.helpers.runs import steps
from trainer.training import run_messages


@pytest.mark.parametrize(
    ("share", "devices", "replicas", "warned"),
    [
        (255, ("GPU:0", "GPU:1"), 2, True),
        (64, ("GPU:0",), 4, True),  # one GPU on each of four machines
        (256, ("GPU:0", "GPU:1"), 2, False),
        (8, ("GPU:0",), 1, False),
        (8, ("CPU:0", "CPU:1"), 2, False),
    ],
)
def test_few_images_on_each_of_several_gpus_are_warned_of(caplog, share, devices, replicas, warned):
    run_messages.warn_of_small_shares(share, devices, replicas)
    assert bool(caplog.records) == warned
    if warned:
        assert f"--batch_size={256 * replicas}" in caplog.text


def test_rates_that_stay_at_zero_are_warned_of(tiny, run):
    """Also, the end of a run does not recommend to train on with them."""
    config = tiny(recipe="mlp", image_size=8, g_lr="linear 2e-4 0 over 0.016 kimg", length=steps(2))
    output = run(config)
    assert "Measure quality" in output
    assert "Train longer" not in output
    assert "does not learn" not in output
    output = run(config.replace(length=steps(5)))
    assert (
        "WARNING: --g_lr='linear 0.0002 0 over 0.016 kimg' is 0 from 0.016 kimg on, so the "
        "generator does not learn in the last 3 steps. A run keeps its schedules. Start it again "
        "with its whole length and --fresh, or train its networks further in another --run_dir "
        f"with --init_from={config.run_dir}"
    ) in output
    assert "Train longer" not in output
    assert "--d_lr" not in output


@pytest.mark.parametrize(
    ("rate", "images", "warned"),
    [
        ("linear 1 0 over 0.08 kimg", 0, ""),  # ends with the run of 10 steps
        ("linear 1 0 over 0.05 kimg", 0, "last 3 steps. Give a schedule that spans the run"),
        ("cosine 1 0 over 0.05 kimg", 64, "last 2 steps. A run keeps"),
        ("cosine 1 0.1 over 0.05 kimg", 0, ""),
        ("inverse_time 1 2 per kimg", 0, ""),
        (0.0, 0, ""),  # a number that says so
    ],
)
def test_steps_with_a_rate_of_zero_are_counted(tiny, caplog, rate, images, warned):
    config = tiny(recipe="mlp", d_lr=rate)
    run_messages.warn_of_rates_of_zero(config, images, 10)
    assert len(caplog.messages) == bool(warned)
    assert warned in caplog.text
