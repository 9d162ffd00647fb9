"""Images that look nearly the same, found by perceptual hashes without comparing each image with each other one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.images.decode import PHASH_BITS
from regnet_deploy.images.image_check import ImageCheck

#: Parts of a hash, of 16 bits each. Two hashes that differ in fewer bits than there are parts have an equal part.
_PARTS = 16
#: Bits in which the hashes of near copies differ at most.
#: ``benchmarks/near_copies.py`` shows what this finds: most images that were compressed, scaled or brightened again.
NEAR_BITS = _PARTS - 1
#: A part has bits from everywhere in the hash: neighbors are often all 0 or all 1, which would make few, large groups.
_ORDER = np.random.default_rng(0).permutation(PHASH_BITS)
#: Hashes with an equal part that a hash is compared with, for each part; of more, as many at random. All images of
#: a camera that stands still are near copies; that each is one is seen without comparing it with all others.
_COMPARED = 200
#: Number of the split "train" among splits.
_TRAIN = 0

#: Two images, and the bits in which their hashes differ: the name of the earlier one, of the later one, bits.
NearPair = tuple[str, str, int]


@dataclass(frozen=True)
class NearCopies:
    """Near copies that are not exact ones. Each image is named with the nearest of those before it.

    Attributes:
        across: (earlier split, later split) -> pairs of an image of the one and an image of the other.
        in_classes: pairs of images in two classes.
        within: pairs of training images of one class.
    """

    across: Mapping[tuple[str, str], list[NearPair]]
    in_classes: list[NearPair]
    within: list[NearPair]


@dataclass(frozen=True)
class _Group:
    """Images of one split and class with the same hash."""

    split: int
    label: str
    members: list[ImageCheck]


def near_copies(splits: Mapping[str, Mapping[str, ImageCheck]], labels: Mapping[str, str]) -> NearCopies:
    """Find near copies: images whose hashes differ in at most :data:`NEAR_BITS` bits.

    Args:
        splits: name of a split, the training images first -> name of a usable image -> result of its check. Images of
            one color have no hash, and are near copies of none.
        labels: name of an image -> its class; images without a class are missing.
    """
    names = list(splits)
    groups = _groups(splits, labels)
    contents = [{one.sha256 for one in images.values()} for images in splits.values()]
    nearest = _nearest(groups, len(names))
    across: dict[tuple[str, str], list[NearPair]] = {}
    for earlier in range(len(names)):
        for later in range(earlier + 1, len(names)):
            pairs = []
            for group, (other, bits) in nearest.across.get((earlier, later), {}).items():
                first = groups[other].members[0].path
                members = (one for one in groups[group].members if one.sha256 not in contents[earlier])
                pairs += [(first, one.path, bits) for one in members]
            across[names[earlier], names[later]] = _sorted(pairs)
    within = [
        (group.members[0].path, one.path, 0) for group in groups if group.split == _TRAIN for one in group.members[1:]
    ]
    within += [(groups[a].members[0].path, groups[b].members[0].path, bits) for b, (a, bits) in nearest.within.items()]
    in_classes = [
        (groups[a].members[0].path, groups[b].members[0].path, bits) for b, (a, bits) in nearest.in_classes.items()
    ]
    return NearCopies(across, _sorted(in_classes), _sorted(within))


def near_pairs(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]]:
    """Find pairs of hashes that differ in at most :data:`NEAR_BITS` bits.

    By the pigeonhole principle such a pair is equal in one of :data:`_PARTS` parts, so only hashes with an equal part
    are compared (multi-index hashing: Norouzi, Punjani and Fleet, CVPR 2012). All pairs are found unless more than
    :data:`_COMPARED` hashes have an equal part.

    Args:
        hashes: ``(n, 4)``, 64 bits in each number.

    Yields:
        Indices of the first hashes, of the second ones, and the bits in which they differ; a pair can come repeatedly.
    """
    octets = hashes.view(np.uint8)
    for part in _ORDER.reshape(_PARTS, -1):
        bits = octets[:, part // 8] >> (part % 8) & 1
        key = np.packbits(np.ascontiguousarray(bits), axis=1).view(np.uint16)[:, 0]
        shuffled = np.random.default_rng(0).permutation(len(key))
        order = shuffled[np.argsort(key[shuffled], kind="stable")]
        keys, ordered = key[order], hashes[order]
        at, offset = np.arange(len(order) - 1), 1
        while (
            at.size and offset <= _COMPARED
        ):  # neighbors in this order, then neighbors but one, and so on, as long as their parts are equal
            at = at[: np.searchsorted(at, len(order) - offset)]
            at = at[keys[at] == keys[at + offset]]
            distance = np.bitwise_count(ordered[at] ^ ordered[at + offset]).sum(axis=1, dtype=np.intp)
            near = distance <= NEAR_BITS
            if near.any():
                yield order[at[near]], order[at[near] + offset], distance[near]
            offset += 1


@dataclass(frozen=True)
class _Nearest:
    """Index of a group -> index of the nearest group, bits; for each of the questions of :class:`NearCopies`."""

    across: dict[tuple[int, int], dict[int, tuple[int, int]]]
    in_classes: dict[int, tuple[int, int]]
    within: dict[int, tuple[int, int]]


def _groups(splits: Mapping[str, Mapping[str, ImageCheck]], labels: Mapping[str, str]) -> list[_Group]:
    """Group images with equal hashes, and leave out exact copies within a group."""
    found: dict[tuple[int, str, str], _Group] = {}
    seen: set[tuple[int, str, str]] = set()
    for split, images in enumerate(splits.values()):
        for name, one in images.items():
            label = labels.get(name, "")
            if not one.phash or (split, label, one.sha256) in seen:
                continue
            seen.add((split, label, one.sha256))
            found.setdefault((split, label, one.phash), _Group(split, label, [])).members.append(one)
    return list(found.values())


def _nearest(groups: Sequence[_Group], splits: int) -> _Nearest:
    """Compare the groups, and keep the nearest earlier group of each: memory is bounded by the number of groups."""
    none = np.iinfo(np.int64).max
    count = max(1, len(groups))
    split = np.array([group.split for group in groups], np.intp)
    known: dict[str, int] = {"": -1}
    label = np.array([known.setdefault(group.label, len(known)) for group in groups], np.intp)
    contents: dict[str, int] = {}
    content = np.array([contents.setdefault(group.members[0].sha256, len(contents)) for group in groups], np.intp)
    hashes = np.frombuffer(b"".join(bytes.fromhex(group.members[0].phash) for group in groups), np.uint64)
    best_across = {(a, b): np.full(count, none) for a in range(splits) for b in range(a + 1, splits)}
    best_class, best_within = np.full(count, none), np.full(count, none)
    for one, other, bits in near_pairs(hashes.reshape(-1, PHASH_BITS // 64)):
        first, second = np.minimum(one, other), np.maximum(one, other)  # groups are in the order of the splits
        rank = bits * count + first
        for (a, b), best in best_across.items():
            _keep_least(best, second, rank, (split[first] == a) & (split[second] == b))
        same = label[first] == label[second]
        labelled = (label[first] >= 0) & (label[second] >= 0)
        _keep_least(best_class, second, rank, labelled & ~same & (content[first] != content[second]))
        _keep_least(best_within, second, rank, same & (split[first] == _TRAIN) & (split[second] == _TRAIN))

    def decoded(best: NDArray[np.int64]) -> dict[int, tuple[int, int]]:
        return {int(i): (int(best[i] % count), int(best[i] // count)) for i in np.flatnonzero(best < none)}

    across = {key: decoded(best) for key, best in best_across.items()}
    return _Nearest(across, decoded(best_class), decoded(best_within))


def _keep_least(
    best: NDArray[np.int64], at: NDArray[np.intp], values: NDArray[np.intp], chosen: NDArray[np.bool_]
) -> None:
    np.minimum.at(best, at[chosen], values[chosen])


def _sorted(pairs: list[NearPair]) -> list[NearPair]:
    return sorted(pairs, key=lambda pair: (pair[2], pair[1]))
