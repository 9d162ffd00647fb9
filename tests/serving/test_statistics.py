import pytest

from regnet_deploy.serving.statistics import Statistics

NOTHING = {"count": 0, "ns": 0}


def succeeded(statistics: Statistics, images: int, batch: int, **stages: float) -> None:
    times = {"decode_s": 0.0, "queue_s": 0.0, "inference_s": 0.0, "total_s": 0.0, **stages}
    statistics.succeeded(images, batch, **times)


def test_nothing_has_happened_at_first():
    document = Statistics().to_json("m", "3")
    assert (document["name"], document["version"], document["last_inference"]) == ("m", "3", 0)
    assert (document["inference_count"], document["execution_count"], document["batch_stats"]) == (0, 0, [])
    assert set(map(str, document["inference_stats"].values())) == {str(NOTHING)}


def test_requests_that_ran_together_are_one_execution():
    statistics = Statistics()
    for images in (1, 2, 5):
        succeeded(statistics, images, 8, queue_s=0.5, inference_s=0.25, decode_s=0.125, total_s=1.0)
    document = statistics.to_json("m", "1")
    assert (document["inference_count"], document["execution_count"]) == (8, 1)
    assert document["last_inference"] > 1_600_000_000_000  # milliseconds
    stages = document["inference_stats"]
    assert stages["success"] == {"count": 3, "ns": 3_000_000_000}
    assert stages["queue"] == {"count": 3, "ns": 1_500_000_000}
    assert stages["compute_infer"] == {"count": 3, "ns": 750_000_000}
    assert stages["compute_input"] == {"count": 3, "ns": 375_000_000}
    assert stages["fail"] == NOTHING
    (row,) = document["batch_stats"]
    assert row["batch_size"] == 8
    assert row["compute_infer"] == {"count": 1, "ns": 250_000_000}  # of the inference, not of each request


def test_batches_are_listed_by_their_size():
    statistics = Statistics()
    for images in (4, 1, 4):
        succeeded(statistics, images, images, inference_s=0.5)
    document = statistics.to_json("m", "1")
    assert [(row["batch_size"], row["compute_infer"]["count"]) for row in document["batch_stats"]] == [(1, 1), (4, 2)]
    assert document["execution_count"] == 3


def test_failures_are_counted_apart():
    statistics = Statistics()
    statistics.failed(0.5)
    document = statistics.to_json("m", "1")
    assert document["inference_stats"]["fail"] == {"count": 1, "ns": 500_000_000}
    assert document["inference_stats"]["success"] == NOTHING
    assert (document["inference_count"], document["last_inference"]) == (0, 0)


def test_an_answer_without_an_inference_is_a_success_and_no_execution():
    """A form in which no image could be decoded."""
    statistics = Statistics()
    succeeded(statistics, 0, 0, decode_s=0.5, total_s=1.0)
    document = statistics.to_json("m", "1")
    assert document["inference_stats"]["success"] == {"count": 1, "ns": 1_000_000_000}
    assert document["inference_stats"]["compute_infer"] == NOTHING
    assert (document["inference_count"], document["execution_count"], document["batch_stats"]) == (0, 0, [])


@pytest.mark.parametrize("batch", [3, 7, 11])
def test_shares_of_an_execution_add_up(batch: int):
    statistics = Statistics()
    for _ in range(10 * batch):
        succeeded(statistics, 1, batch, inference_s=0.1)
    document = statistics.to_json("m", "1")
    assert document["execution_count"] == document["batch_stats"][0]["compute_infer"]["count"] == 10
