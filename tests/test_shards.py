"""Tar shards: the order, resuming without decoding, faults, web servers, and writing them."""

import itertools
import json

import numpy as np
import pytest
import torch
from image_files import make_jpeg
from shard_files import Numbers, numbered, png, same, tar_bytes, value_and_noise, value_only, values
from torch.utils.data import DataLoader

from mixerzoo.data import remote, streaming, tar
from mixerzoo.data.folder import in_one_line, open_folder
from mixerzoo.data.indexed import FolderImages
from mixerzoo.data.shards import ShardImages, ShardSource, open_shards
from mixerzoo.data.source import Share
from mixerzoo.data.streaming import Reader, buffered_order, decode
from mixerzoo.data.tar import count_images, write_shards
from mixerzoo.errors import ConfigError, DataError

COUNT = 48


@pytest.fixture
def folder(tmp_path):
    write_shards(Numbers(COUNT), tmp_path / "shards", images_per_shard=6)
    return tmp_path / "shards"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)


def once(shards, rank=0, world_size=1, workers=0):
    """(value, label) of every sample that this process evaluates."""
    data = ShardImages(shards, value_only, rank=rank, world_size=world_size)
    loader = in_one_line(DataLoader(data, batch_size=None, num_workers=workers, generator=torch.Generator()))
    return [(int(image.flatten()[0]), int(label)) for image, label in loader]


def take(source, share, count, first_step=0):
    return list(itertools.islice(source.micro_batches(share, first_step), count))


def write(path, members):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path


# The order


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_once_an_epoch_over_all_readers(folder, workers):
    source = ShardSource(open_shards(folder), value_and_noise, buffer_size=5)
    assert source.num_images == COUNT
    assert source.classes == ["a", "b", "c"]
    epochs = []
    per_rank = [
        take(source, Share(batch_size=8, accumulate=2, rank=rank, world_size=2, seed=3, workers=workers), 24)
        for rank in range(2)
    ]
    for epoch in range(2):
        batches = [batch for rank in per_rank for batch in rank[12 * epoch : 12 * (epoch + 1)]]
        assert sorted(values(batches)) == list(range(COUNT))
        assert all(torch.equal(b.labels, b.images[:, 0, 0, 0].long() % 3) for b in batches)
        assert all(b.images.shape == (2, 1, 2, 2) and b.labels.dtype == torch.int64 for b in batches)
        epochs.append(values(batches))
    assert epochs[0] != epochs[1]
    noise = [{float(v) for b in rank for v in b.images[:, 0, 0, 1]} for rank in per_rank]
    assert len(noise[0] | noise[1]) == 2 * COUNT  # each image is augmented anew in each epoch


def test_the_order_is_a_function_of_the_seed_and_well_mixed(folder):
    source = ShardSource(open_shards(folder), value_and_noise, buffer_size=100)
    one, again, other = (take(source, Share(8, seed=seed), 6) for seed in (0, 0, 1))
    assert same(one, again)
    assert values(one) != values(other)
    torch.manual_seed(99)  # the global generators decide nothing, and stay as they are
    before = torch.get_rng_state()
    assert same(one, take(source, Share(8), 6))
    assert torch.equal(before, torch.get_rng_state())
    assert np.abs(np.diff(values(one))).mean() > COUNT / 6


def test_unequal_shards_are_read_completely_and_nobody_falls_behind(tmp_path):
    for number, size in enumerate([1, 7, 2, 4, 6]):
        write(tmp_path / f"{number}.tar", numbered(10 * number, size))
    source = ShardSource(open_shards(tmp_path), value_only, buffer_size=3)
    assert source.num_images == 20
    seen = [np.bincount(values(take(source, Share(2, rank=r, world_size=2), 400)), minlength=60) for r in range(2)]
    total = (seen[0] + seen[1])[[n * 10 + i for n, size in enumerate([1, 7, 2, 4, 6]) for i in range(size)]]
    assert total.sum() == 800
    assert total.min() >= 30
    assert total.max() <= 50
    dealt = [[len(source._dealt(Reader(r, 2, 0), epoch)) for r in range(2)] for epoch in range(4)]
    assert dealt == [[3, 2], [2, 3]] * 2


def test_a_buffer_gives_out_each_sample_once_and_holds_no_more_than_its_size():
    for count, size in ((0, 3), (1, 1), (20, 1), (20, 7), (20, 100)):
        order = buffered_order(count, size, seed=5).tolist()
        assert sorted(order) == list(range(count))
        assert all(arrival < place + size for place, arrival in enumerate(order))
    assert buffered_order(20, 1, seed=5).tolist() == list(range(20))
    assert not torch.equal(buffered_order(20, 7, seed=5), buffered_order(20, 7, seed=6))


def test_neighbours_are_a_ring_of_the_micro_batch(folder):
    source = ShardSource(open_shards(folder), value_and_noise)
    plain, ring = take(source, Share(8), 6), take(source, Share(8, neighbours=True), 6)
    for one, other in zip(plain, ring, strict=True):
        assert torch.equal(other.images[1:], one.images)
        assert torch.equal(other.images[0], one.images[-1])
        assert torch.equal(other.labels[1:], one.labels)
        assert other.labels[0] == one.labels[-1]


# Resuming


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_stream_is_the_same_bit_for_bit(tmp_path, workers):
    write_shards(Numbers(45), tmp_path / "shards", images_per_shard=7)  # unequal shards, batches across epochs
    damaged = numbered(100, 6)
    damaged[4] = ("0102.png", b"no image")
    write(tmp_path / "shards" / "z.tar", damaged)
    (tmp_path / "shards" / "sizes.json").unlink()
    source = ShardSource(open_shards(tmp_path / "shards"), value_and_noise, buffer_size=9)
    # An odd number of micro-batches a step: the workers of a resumed run take each other's places.
    share = Share(batch_size=18, accumulate=3, rank=1, world_size=2, seed=7, workers=workers, neighbours=True)
    whole = take(source, share, 60)
    assert any(batch.faults for batch in whole)
    for step in (0, 1, 2, 5, 13, 18):
        rest = take(source, share, 60 - 3 * step, first_step=step)
        assert same(whole[3 * step :], rest), step


def test_skipped_samples_are_not_decoded_and_their_shards_stay_closed(folder, monkeypatch):
    source = ShardSource(open_shards(folder), value_only, buffer_size=4)
    whole = take(source, Share(4), 40)
    decoded, opened = [], []
    decode, read = streaming.decode_image, tar._open
    monkeypatch.setattr(streaming, "decode_image", lambda data, name: decoded.append(name) or decode(data, name))
    monkeypatch.setattr(tar, "_open", lambda at: opened.append(at) or read(at))
    rest = take(source, Share(4), 2, first_step=34)  # two whole epochs and ten steps of the third are behind
    assert same(whole[34:36], rest)
    assert len(decoded) == 8
    assert len(opened) <= 3


def test_what_the_order_depends_on_is_described(folder):
    shards = open_shards(folder)
    source = ShardSource(shards, value_only)
    known = source.describe(Share(8, workers=2))
    assert json.loads(json.dumps(known)) == known
    assert known["num_images"] == COUNT
    for other in (Share(8, workers=3), Share(8, workers=2, world_size=2), Share(8, workers=2, accumulate=2)):
        assert source.describe(other) != known
    assert ShardSource(shards, value_only, buffer_size=7).describe(Share(8, workers=2)) != known
    fewer = open_shards([str(at) for at in sorted(folder.glob("*.tar"))[1:]])
    assert ShardSource(fewer, value_only).describe(Share(8, workers=2)) != known
    assert source.describe(Share(8, workers=0)) == source.describe(Share(8, workers=1))  # one reader either way


# Samples that cannot be used


def test_unusable_samples_are_replaced_and_named_once_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MAX_MEMBER_BYTES", 1000)
    members = [
        *numbered(0, 8),
        ("bad.png", b"no image"),
        ("bad.cls", b"1"),
        ("text.png", png(50)),
        ("text.cls", b"one"),
        ("outside.png", png(51)),
        ("outside.cls", b"3"),
        ("negative.png", png(52)),
        ("negative.cls", b"-1"),
        ("none.png", png(53)),
        ("null.png", png(54)),
        ("null.json", b'{"label": null}'),
        ("broken.png", png(55)),
        ("broken.json", b"{"),
        ("large.png", bytes(1001)),
        ("large.cls", b"0"),
    ]
    write(tmp_path / "s.tar", members)
    source = ShardSource(open_shards(tmp_path, num_classes=3), value_only, buffer_size=100)
    assert source.num_images == 16
    batches = take(source, Share(4), 8)  # two epochs
    for epoch in (batches[:4], batches[4:]):
        faults = {fault.name: fault.reason for batch in epoch for fault in batch.faults}
        assert sum(len(batch.faults) for batch in epoch) == 8
        assert set(faults) == {
            f"s.tar: {key}" for key in ("bad", "text", "outside", "negative", "none", "null", "broken", "large")
        }
        assert "not an image" in faults["s.tar: bad"]
        assert "'one' is not a whole number" in faults["s.tar: text"]
        assert "3 is not a class (0 to 2)" in faults["s.tar: outside"]
        assert "-1" in faults["s.tar: negative"]
        assert "no label" in faults["s.tar: none"]
        assert "no whole number" in faults["s.tar: null"]
        assert "not JSON" in faults["s.tar: broken"]
        assert "larger than 1,000 bytes" in faults["s.tar: large"]
    assert set(values(batches)) == set(range(8))


def test_labels_and_keys_of_other_writers(tmp_path):
    members = [
        ("./a/x.y/0.JPEG", png(1)),
        ("./a/x.y/0.json", b'{"label": 2, "text": "x"}'),
        ("folder", None),
        ("link.png", "/etc/passwd"),
        ("1.webp", png(2)),
        ("1.cls", b" 1\n"),
        ("1.seg.png", png(77)),
        ("only.cls", b"1"),
        ("README", b"text"),
        ("2.png", png(3)),
        ("2.pyd", b"cos\nsystem\n(S'exit 1'\ntR."),
        ("2.json", b'{"cls": 0}'),
    ]
    write(tmp_path / "s.tar", members)
    shards = open_shards(tmp_path)
    assert shards.num_images == 3
    assert shards.classes is None
    assert once(shards) == [(1, 2), (2, 1), (3, 0)]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("cut", ["data", "boundary", "header"])
def test_a_truncated_shard_costs_its_rest(tmp_path, known, cut):
    write(tmp_path / "whole.tar", numbered(0, 10))
    content = tar_bytes(numbered(10, 10))
    five = 5 * 2 * (512 + 512)  # each of two members is a header and a block of data
    if cut == "header":
        content = content[:five] + b"\xff" * 512 + content[five + 512 :]
    else:
        content = content[: five + (520 if cut == "data" else 0)]
    (tmp_path / "cut.tar").write_bytes(content)
    if known:
        (tmp_path / "sizes.json").write_text('{"whole.tar": 10, "cut.tar": 10}')
    source = ShardSource(open_shards(tmp_path), value_only, buffer_size=30)
    missing = source.num_images - len(set(values(take(source, Share(1), 100))))
    faults = {fault.name for batch in take(source, Share(1), source.num_images) for fault in batch.faults}
    assert missing == (5 if known else 1)
    assert len(faults) == missing
    assert all(name.startswith("cut.tar: sample ") for name in faults)


def test_random_damage_is_faults_or_one_sentence(tmp_path):
    rng, whole, messages = np.random.default_rng(0), tar_bytes(numbered(0, 10)), []
    path = tmp_path / "s.tar"
    for _ in range(150):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for position in rng.integers(0, len(data), size=4):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            samples = [decode(sample) for sample in open_shards(path, sizes={"s.tar": 10}).read(0)]
        except DataError as error:
            messages.append(str(error))
        else:
            assert len(samples) == 10  # images or faults
    assert len(messages) < 15
    assert not any("\n" in message for message in messages)


def test_nothing_but_faults_stops(tmp_path):
    write(tmp_path / "s.tar", [(f"{i}.png", b"no") for i in range(30)])
    with pytest.raises(DataError, match=r"^\d+ samples in a row cannot be used, the last is s.tar: \d+ \(.*label"):
        take(ShardSource(open_shards(tmp_path), value_only), Share(4), 1)
    with pytest.raises(DataError, match=r"^\d+ samples in a row cannot be used, [^\n]*$"):
        take(ShardSource(open_shards(tmp_path), value_only), Share(4, workers=1), 1)


def test_absent_samples_alone_do_not_run_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_ABSENT", 100)
    write(tmp_path / "s.tar", [])
    with pytest.raises(DataError, match="in a row cannot be used"):
        take(ShardSource(open_shards(tmp_path, sizes={"s.tar": 40}), value_only), Share(4), 1)


def test_compressed_and_foreign_files_are_not_read(tmp_path):
    import gzip

    (tmp_path / "s.tar").write_bytes(gzip.compress(tar_bytes(numbered(0, 5))))
    with pytest.raises(DataError, match=r"s\.tar: sample 1 of 5 cannot be used .*compressed"):
        once(open_shards(tmp_path, sizes={"s.tar": 5}))


def test_whole_shards_are_held_out(folder):
    kept, out = open_shards(folder).split(0.2)
    assert (len(kept.locations), len(out.locations)) == (6, 2)
    assert out.locations == open_shards(folder).locations[-2:]
    assert kept.num_images + out.num_images == COUNT
    assert kept.classes == out.classes == open_shards(folder).classes
    with pytest.raises(DataError, match=r"holdout=0\.99 of 8 shards leaves one side empty"):
        open_shards(folder).split(0.99)


# Finding shards


def test_patterns_lists_and_folders(folder):
    names = sorted(str(path) for path in folder.glob("*.tar"))
    assert len(names) == 8
    for where in (folder, str(folder / "shard-{000000..000007}.tar"), names, [f"{folder}/shard-00000{{0..7}}.tar"]):
        assert list(open_shards(where).locations) == names
    assert open_shards(folder / "shard-{000000..000001}.tar").num_images == 12
    with pytest.raises(DataError, match=r"There is no shard .*shard-000008.tar\.$"):
        open_shards(f"{folder}/shard-{{000000..000008}}.tar")
    with pytest.raises(DataError, match="10,000,000,000 shards"):
        open_shards("x-{0..9999999999}.tar")
    with pytest.raises(DataError, match="braces do not match"):
        open_shards("x-{0..9.tar")
    with pytest.raises(DataError, match=r"come twice: shard-000000\.tar"):
        open_shards([names[0], names[0]])
    with pytest.raises(DataError, match="No shards"):
        open_shards([])
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no \.tar files"):
        open_shards(folder / "empty")


@pytest.mark.parametrize("url", ["pipe:touch {}", "PIPE:touch {}", "file:{}", "s3://bucket/{}", "ftp://localhost/{}"])
def test_no_address_but_http_and_nothing_runs(tmp_path, url):
    target = tmp_path / "made"
    for where in (url.format(target), [url.format(target)]):
        with pytest.raises(DataError, match=r"local paths and http\(s\) addresses, not from"):
            open_shards(where, sizes={"made": 1})
    assert not target.exists()


def test_sizes_and_classes(folder):
    counted = {path.name: count_images(str(path)) for path in folder.glob("*.tar")}
    assert json.loads((folder / "sizes.json").read_text()) == counted
    (folder / "sizes.json").rename(folder / "other.json")
    assert open_shards(folder).num_images == COUNT  # counted
    info = {"train": {"filenames": sorted(counted), "shard_lengths": [6] * 8}, "validation": {}}
    (folder / "_info.json").write_text(json.dumps({"splits": info}))
    assert open_shards(folder).sizes == (6,) * 8
    with pytest.raises(DataError, match=r"say None for shard-000000.tar"):
        open_shards(folder, sizes={"x": 1})
    for wrong in (True, -1, "6"):
        with pytest.raises(DataError, match="not a number of samples"):
            open_shards(folder, sizes=counted | {"shard-000003.tar": wrong})
    with pytest.raises(DataError, match="no images"):
        open_shards(folder, sizes=dict.fromkeys(counted, 0))
    (folder / "sizes.json").write_text("[")
    with pytest.raises(DataError, match=r"sizes.json beside .* is not JSON"):
        open_shards(folder)
    (folder / "sizes.json").write_text("[]")
    with pytest.raises(DataError, match="not of the form"):
        open_shards(folder)
    with pytest.raises(DataError, match="num_classes=4, but 3 class names"):
        open_shards(folder, sizes=counted, num_classes=4)
    with pytest.raises(ConfigError, match="num_classes"):
        open_shards(folder, sizes=counted, num_classes=0)
    (folder / "classes.txt").unlink()
    assert open_shards(folder, sizes=counted, num_classes=4).num_classes == 4
    (folder / "classes.json").write_text('["x", "y", "z"]')
    assert open_shards(folder, sizes=counted).classes == ["x", "y", "z"]
    (folder / "classes.json").write_text('{"x": 1}')
    with pytest.raises(DataError, match="not a list of names"):
        open_shards(folder, sizes=counted)


def test_sizes_that_are_too_small_are_an_error(folder):
    sizes = json.loads((folder / "sizes.json").read_text()) | {"shard-000002.tar": 5}
    source = ShardSource(open_shards(folder, sizes=sizes), value_only)
    with pytest.raises(DataError, match=r"shard-000002.tar holds more than the 5 samples"):
        take(source, Share(1), 100)


def test_too_few_shards_for_the_readers(folder):
    source = ShardSource(open_shards(folder), value_only)
    with pytest.raises(DataError, match="3 processes with 3 workers each are 9 readers, but there are 8 shards"):
        take(source, Share(9, world_size=3, workers=3), 1)
    with pytest.raises(ConfigError, match="buffer_size"):
        ShardSource(open_shards(folder), value_only, buffer_size=0)


def test_a_shard_that_vanishes_or_names_a_member_twice(folder, tmp_path):
    source = ShardSource(open_shards(folder), value_only)
    (folder / "shard-000004.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000004.tar cannot be read \(No such file"):
        take(source, Share(8), 6)
    twice = write(tmp_path / "twice.tar", numbered(0, 1) * 2)
    with pytest.raises(DataError, match=r"twice.tar has a member twice \(0000.png"):
        open_shards(twice)


# Web servers


def serve(files, folder, *names):
    for path in folder.iterdir():
        if not names or path.name in names:
            files.files[f"/data/{path.name}"] = path.read_bytes()
    return f"{files.url}/data/shard-{{000000..000007}}.tar"


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_is_the_same_as_reading_files(folder, files, workers):
    url = serve(files, folder)
    share = Share(8, workers=workers)
    there = ShardSource(open_shards(url), value_and_noise, buffer_size=5)
    here = ShardSource(open_shards(folder), value_and_noise, buffer_size=5)
    assert same(take(there, share, 12), take(here, share, 12))
    assert there.describe(share) == here.describe(share)
    assert there.classes == ["a", "b", "c"]


@pytest.mark.parametrize("ignore_ranges", [False, True])
def test_cut_connections_are_taken_up(folder, files, ignore_ranges):
    url = serve(files, folder)
    files.ignore_ranges = ignore_ranges
    source = ShardSource(open_shards(url), value_and_noise, buffer_size=5)
    whole = take(source, Share(8), 6)
    files.cuts = [700, 0, 1500, 5000] if ignore_ranges else [700, 0, 1, 5000, 600, 0, 0, 512]
    assert same(take(source, Share(8), 6), whole)
    assert not files.cuts
    assert any(asked for _, _, asked in files.requests)


def test_a_server_that_fails_for_good_is_one_sentence(folder, files):
    url = serve(files, folder)
    source = ShardSource(open_shards(url), value_only)
    files.cuts = [600] + [0] * 100
    with pytest.raises(
        DataError, match=r"^shard-00000\d.tar cannot be read from 127.0.0.1 after 5 attempts \(.*600 of"
    ):
        take(source, Share(8), 6)
    files.cuts = []
    files.status = 503
    with pytest.raises(DataError, match=r"after 5 attempts \(.*\): check the connection"):
        take(source, Share(8, workers=1), 6)
    files.status, files.requests[:] = 403, []
    with pytest.raises(DataError, match=r"refuses it \(403\)"):
        take(source, Share(8), 6)
    assert len(files.requests) == 1  # no second attempt
    files.status = None
    del files.files["/data/shard-000005.tar"]
    with pytest.raises(DataError, match=r"^shard-000005.tar is not on the server 127.0.0.1 \(404\)"):
        take(source, Share(8), 6)


def test_a_file_that_changes_meanwhile_is_noticed(files):
    files.files["/x.bin"] = b"a" * 1000
    with remote.RemoteFile(f"{files.url}/x.bin?token=secret") as file:
        files.files["/x.bin?token=secret"] = b"a" * 1000
        files.cuts = [10]
        assert file.read(10) == b"a" * 10
        files.files["/x.bin?token=secret"] = b"b" * 1000
        with pytest.raises(DataError, match=r"^x.bin changed on the server"):
            file.read(10)


def test_redirects_lead_to_web_servers_only(files, tmp_path):
    (tmp_path / "secret").write_text("x")
    files.files["/here"] = b""
    handler = files.server.RequestHandlerClass
    for target in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/secret"):
        original = handler._answer

        def redirect(self, *, body, target=target):
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()

        handler._answer = redirect
        try:
            with pytest.raises(DataError):
                remote.fetch(f"{files.url}/here")
        finally:
            handler._answer = original


def test_remote_shards_need_sizes(folder, files):
    names = [f"shard-00000{i}.tar" for i in range(8)]
    url = serve(files, folder, *names)
    with pytest.raises(DataError, match=r"how many samples shard-000000.tar, .* and 5 more have: give sizes, or put"):
        open_shards(url)
    assert not any(path.endswith(".tar") for path in files.downloads())
    sizes = {name: count_images(f"{files.url}/data/{name}") for name in names}
    assert set(sizes.values()) == {6}
    assert open_shards(url, sizes=sizes).classes is None
    files.files["/data/sizes.json"] = b" " * (2**24 + 1)
    with pytest.raises(DataError, match="more than"):
        open_shards(url)


# Evaluation


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_reads_each_image_once(folder, workers, world_size):
    shards = open_shards(folder)
    ranks = [once(shards, rank, world_size, workers) for rank in range(world_size)]
    assert sorted(value for rank in ranks for value, _ in rank) == list(range(COUNT))
    assert all(label == value % 3 for rank in ranks for value, label in rank)
    if world_size == 1 and workers == 0:
        in_file_order = [int(v) for at in sorted(folder.glob("*.tar")) for v in keys(at)]
        assert [value for value, _ in ranks[0]] == in_file_order


def keys(path):
    return [sample.key for sample in tar.read_tar(str(path))]


def test_evaluation_names_what_is_missing(tmp_path):
    write(tmp_path / "0.tar", [*numbered(0, 5), ("bad.png", b"x"), ("bad.cls", b"0")])
    write(tmp_path / "1.tar", [("bad.png", b"x"), ("bad.cls", b"0")])
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^0\.tar: bad cannot be used for evaluation \([^\n]*$"):
            once(open_shards(tmp_path), workers=workers)


# Writing


def test_writing_from_a_folder_copies_the_files(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
    photo = make_jpeg(tmp_path).read_bytes()
    for i in range(4):
        (tmp_path / f"images/train/cat/{i}.jpg").write_bytes(photo)
        (tmp_path / f"images/train/dog/{i}.png").write_bytes(png(i))
    (tmp_path / "images/train/dog/bad.png").write_bytes(b"no")
    data = FolderImages(open_folder(tmp_path / "images", ("train",), lambda image: image))
    written = write_shards(data, tmp_path / "out", images_per_shard=3, prefix="train")
    assert [path.name for path in written.shards] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert written.num_images == 8
    assert [fault.name.rpartition("/")[2] for fault in written.faults] == ["bad.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.txt",
        "sizes.json",
        *(path.name for path in written.shards),
    ]
    samples = [sample for path in written.shards for sample in tar.read_tar(str(path))]
    assert sorted(sample.image for sample in samples if sample.label == 0) == [photo] * 4
    assert sorted(sample.image for sample in samples if sample.label == 1) == sorted(png(i) for i in range(4))
    assert [sample.label for sample in samples] != sorted(sample.label for sample in samples)  # shuffled
    assert open_shards(tmp_path / "out").classes == ["cat", "dog"]
    first = [path.read_bytes() for path in written.shards]
    again = write_shards(data, tmp_path / "again", images_per_shard=3, prefix="train")
    assert [path.read_bytes() for path in again.shards] == first


def test_writing_never_leaves_half_a_shard(tmp_path):
    class Failing(Numbers):
        def read(self, index):
            if index == 11:
                raise RuntimeError("pulled out")
            return super().read(index)

    with pytest.raises(RuntimeError):
        write_shards(Failing(20), tmp_path / "out", images_per_shard=4, seed=None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["shard-000000.tar", "shard-000001.tar"]
    with pytest.raises(DataError, match="has shards already"):
        write_shards(Numbers(20), tmp_path / "out")


def test_writing_what_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="None of the 3 images can be read"):
        write_shards(Numbers(3, corrupt=range(3)), tmp_path / "out")
    with pytest.raises(ConfigError, match="images_per_shard=0"):
        write_shards(Numbers(3), tmp_path / "out", images_per_shard=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be stored"):
        write_shards(Numbers(3), tmp_path / "file" / "out")


def test_other_tools_read_what_is_written(folder):
    from webdataset.tariterators import group_by_keys, tar_file_expander

    samples = []
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            samples += group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
    assert len(samples) == COUNT
    assert {int(s["cls"]) for s in samples} == {0, 1, 2}
    assert {s["png"] for s in samples} == {png(i) for i in range(COUNT)}


def test_without_webdataset_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    with pytest.raises(ConfigError, match=r"pip install 'mixerzoo\[train\]'"):
        open_shards(folder)
