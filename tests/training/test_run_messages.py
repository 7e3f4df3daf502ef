"""Messages at the start of a run that need devices which tests do not have."""

import pytest

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
