from benchmarks import harness


def test_growing_files_are_sent_at_most_twice():
    rows = harness.alone("benchmarks.uploads:uploads", days=0.01, per_line=800)
    assert [row["file"] for row in rows] == ["metrics.jsonl", "events", "events.jsonl"]
    for row in rows[:2]:
        assert row["size_MB"] <= row["sent_MB"] <= 2 * row["size_MB"] < row["naive_sent_MB"]
        assert row["class_A"] < 2 * row["naive_class_A"]
