from benchmarks import harness


def test_benchmark_times_the_parts_of_the_trainer(tmp_path):
    result = harness.alone(
        "benchmarks.stalls:stalls", recipe="mlp-small", count=2, run_dir=str(tmp_path / "run")
    )
    seconds = result["seconds"]
    assert {name: len(seconds[name]) for name in ("compile", "samples", "saves")} == {
        "compile": 1,
        "samples": 2,
        "saves": 2,
    }
    assert len(seconds["steps"]) == len(seconds["summaries"]) >= 2
