from regnet_deploy.serving.admission import Admission


def test_bytes_count_while_their_request_is_inside():
    admission = Admission(4, max_bytes=100)
    with admission.enter() as first, admission.enter() as second:
        assert first.take(60)
        assert not second.take(41)
        assert second.take(40)
        assert admission.bytes_in_flight == 100
        assert not first.take(1)
    assert admission.bytes_in_flight == 0
