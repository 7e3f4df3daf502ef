import pytest

from benchmarks import gpu


def test_kernels_run_on_the_cpu(capfd):
    assert gpu.main(["kernels", "--devices=cpu"]) == 0
    lines = capfd.readouterr().out.split("\n")
    table = [line.split() for line in lines if line.startswith("cpu ")]
    assert [row[1:4] for row in table] == [[p, "CPU:0", "True"] for p in gpu.PRECISIONS]


def test_failed_part_is_reported_and_the_next_part_runs(capfd):
    assert gpu.main(["kernels", "devices", "--devices=nowhere"]) == 1
    output = capfd.readouterr().out
    assert "--devices=nowhere: benchmarks.gpu:rows_of" in output
    assert "cuDNN loaded" in output


def test_unknown_part_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["kernel"])
    assert "unknown part 'kernel'" in capsys.readouterr().err
