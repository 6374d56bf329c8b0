"""Order and augmentation are functions of seed, epoch and index: of nothing else."""

import random

import numpy as np
import pytest
import torch
from training import DATA_CONFIG, QUICK, write_data

from mixerzoo.data.folder import open_folder
from mixerzoo.data.indexed import Chosen, FolderImages, IndexedSource, hold_out, seeded
from mixerzoo.data.source import Share, epoch_order, seed_of
from mixerzoo.data.transforms import train_transform
from mixerzoo.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return FolderImages(open_folder(write_data(tmp_path_factory.mktemp("data")), ("train",), None))


@pytest.fixture(scope="module")
def source(images):
    return IndexedSource(images, train_transform(DATA_CONFIG, QUICK.augmentation))


def read(source, share, first_step=0, count=1):
    stream = source.micro_batches(share, first_step)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def joined(batches):
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def test_every_number_of_processes_and_workers_reads_the_same_global_batches(source):
    whole = joined(read(source, Share(8), count=5))
    for world_size, accumulate, workers in ((2, 1, 0), (1, 4, 1), (4, 2, 0), (2, 2, 2)):
        ranks = [
            read(source, Share(8, accumulate, rank, world_size, workers=workers), count=5 * accumulate)
            for rank in range(world_size)
        ]
        steps = [
            batch for step in range(5) for rank in ranks for batch in rank[step * accumulate : (step + 1) * accumulate]
        ]
        assert all(torch.equal(a, b) for a, b in zip(joined(steps), whole, strict=True))


def test_a_stream_from_a_later_step_is_the_rest_of_the_stream(source):
    """24 images, batches of 8: step 4 is in the second epoch."""
    stream = read(source, Share(8, seed=3), count=9)
    for first in (1, 3, 4, 8):
        rest = read(source, Share(8, seed=3), first, 9 - first)
        assert all(torch.equal(a, b) for a, b in zip(joined(stream[first:]), joined(rest), strict=True))


def test_an_epoch_is_every_image_once_and_epochs_and_seeds_differ(images):
    plain = IndexedSource(Numbered(24), lambda image: torch.tensor(image))
    epochs = [torch.cat([b.images for b in read(plain, Share(8, seed=1), 3 * e, 3)]).tolist() for e in range(2)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    other = torch.cat([b.images for b in read(plain, Share(8, seed=2), 0, 3)]).tolist()
    assert epochs[0] != epochs[1] != other != epochs[0]
    dropped = torch.cat([b.images for b in read(IndexedSource(Numbered(20), torch.tensor), Share(8), 0, 2)]).tolist()
    assert len(set(dropped)) == 16  # the incomplete batch is dropped


def test_augmentation_differs_between_epochs_and_images(source):
    first, again = (read(source, Share(24), epoch)[0] for epoch in (0, 1))
    places = [epoch_order(0, epoch, 24).tolist() for epoch in (0, 1)]
    same = [torch.equal(first.images[places[0].index(i)], again.images[places[1].index(i)]) for i in range(24)]
    assert sum(same) < 6


def test_the_neighbour_is_the_image_before_in_the_ring(source):
    whole = read(source, Share(8))[0]
    for rank in range(2):
        for micro, batch in enumerate(read(source, Share(8, 2, rank, 2, neighbours=True), count=2)):
            start = (rank * 2 + micro) * 2
            for row, place in enumerate((start - 1, start, start + 1)):
                assert torch.equal(batch.images[row], whole.images[place])
                assert batch.labels[row] == whole.labels[place]


class Numbered:
    """Images that are their own index; some cannot be read."""

    classes = None

    def __init__(self, count, bad=()):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def read(self, index):
        from mixerzoo.errors import ImageError

        if index in self.bad:
            raise ImageError(f"{self.name(index)}: torn")
        return index, index

    def name(self, index):
        return f"image {index}"


def test_the_next_image_stands_in_for_one_that_cannot_be_read():
    good = read(IndexedSource(Numbered(16), torch.tensor), Share(16))[0].images.tolist()
    batch = read(IndexedSource(Numbered(16, {3, 15}), torch.tensor), Share(16))[0]
    assert batch.images.tolist() == [{3: 4, 15: 0}.get(i, i) for i in good]
    assert {(fault.name, fault.reason) for fault in batch.faults} == {("image 3", "torn"), ("image 15", "torn")}
    with pytest.raises(DataError, match="20 images in a row cannot be read, the last is image"):
        read(IndexedSource(Numbered(64, set(range(40))), torch.tensor), Share(64))


def test_sampling_leaves_the_generators_alone(source):
    """Reading in the training process neither moves nor depends on what others draw."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    a = read(source, Share(8))[0].images
    drawn = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    assert drawn == (torch.rand(1), random.random(), np.random.rand())
    assert torch.equal(read(source, Share(8))[0].images, a)
    with seeded(1, 2):
        inside = torch.rand(1), random.random(), np.random.rand()
    with seeded(1, 2):
        assert inside == (torch.rand(1), random.random(), np.random.rand())
    with seeded(2, 1):
        assert inside != (torch.rand(1), random.random(), np.random.rand())


def test_seeds_depend_on_every_part():
    seeds = {seed_of(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_is_held_out_is_nothing_else(images):
    kept, out = hold_out(images, 0.25)
    assert (len(kept), len(out)) == (18, 6)
    names = [{part.name(i) for i in range(len(part))} for part in (kept, out)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 24
    again = hold_out(images, 0.25)[1]
    assert [again.name(i) for i in range(6)] == [out.name(i) for i in range(6)]
    with pytest.raises(DataError, match="leaves one side empty"):
        hold_out(Chosen(images, [0, 1]), 0.1)


def test_shares_that_do_not_come_out_equal_are_refused():
    with pytest.raises(ConfigError, match="batch_size=10 cannot be shared equally by 2 processes with 2"):
        Share(10, 2, 0, 2)
