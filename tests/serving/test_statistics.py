"""Counters in the words of the protocol."""

from typing import Any

from regnet_deploy.serving.statistics import Statistics

NOTHING = {"count": 0, "ns": 0}


def succeeded(statistics: Statistics, images: int, **stages: float) -> None:
    times = {"decode_s": 0.0, "queue_s": 0.0, "inference_s": 0.0, "total_s": 0.0, **stages}
    statistics.succeeded(images, **times)


def told(statistics: Statistics, executions: dict[int, tuple[int, float]] | None = None) -> dict[str, Any]:
    return statistics.to_json("cats", "3", executions or {})


def test_nothing_has_happened_at_first():
    stats = told(Statistics())
    assert (stats["name"], stats["version"]) == ("cats", "3")
    assert (stats["inference_count"], stats["execution_count"], stats["last_inference"]) == (0, 0, 0)
    assert stats["batch_stats"] == stats["memory_usage"] == []
    assert all(value == NOTHING for value in stats["inference_stats"].values())


def test_requests_and_the_executions_that_they_shared():
    statistics = Statistics()
    for images in (1, 2, 5):
        succeeded(statistics, images, queue_s=0.5, inference_s=0.25, decode_s=0.125, total_s=1.0)
    stats = told(statistics, {8: (1, 0.25)})
    assert (stats["inference_count"], stats["execution_count"]) == (8, 1)
    assert stats["inference_stats"]["success"] == {"count": 3, "ns": 3_000_000_000}
    assert stats["inference_stats"]["queue"] == {"count": 3, "ns": 1_500_000_000}
    assert stats["inference_stats"]["compute_input"] == {"count": 3, "ns": 375_000_000}
    assert stats["inference_stats"]["compute_infer"] == {"count": 3, "ns": 750_000_000}
    assert stats["last_inference"] > 1_700_000_000_000  # milliseconds since 1970


def test_batches_are_listed_by_their_size():
    stats = told(Statistics(), {4: (3, 1.5), 1: (2, 0.5)})
    assert [batch["batch_size"] for batch in stats["batch_stats"]] == [1, 4]
    assert [batch["compute_infer"] for batch in stats["batch_stats"]] == [
        {"count": 2, "ns": 500_000_000},
        {"count": 3, "ns": 1_500_000_000},
    ]
    assert stats["execution_count"] == 5


def test_failures_are_counted_apart():
    statistics = Statistics()
    statistics.failed(0.5)
    stats = told(statistics)
    assert stats["inference_stats"]["fail"] == {"count": 1, "ns": 500_000_000}
    assert stats["inference_stats"]["success"] == NOTHING


def test_an_answer_without_an_inference_is_a_success_alone():
    statistics = Statistics()
    succeeded(statistics, 0, decode_s=0.5, total_s=1.0)
    stats = told(statistics)
    assert stats["inference_stats"]["success"]["count"] == 1
    assert stats["inference_stats"]["queue"] == NOTHING
    assert stats["inference_count"] == 0
