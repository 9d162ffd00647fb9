"""The classes of ImageNet."""

from regnet_deploy.images.imagenet import class_names


def test_the_classes_of_imagenet_have_unique_names_in_the_order_of_their_synsets():
    for classes, first in ((1000, ("n01440764", "tench")), (11821, ("n00005787", "benthos (n00005787)"))):
        names = class_names(classes)
        assert len(names) == len({name for _, name in names}) == classes
        assert names[0] == first
        assert [synset for synset, _ in names] == sorted(synset for synset, _ in names)
    assert class_names(10) == []
