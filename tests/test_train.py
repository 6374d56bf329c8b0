"""Training runs: learning, resuming, and what a user does wrong."""

import dataclasses
import itertools
import json
import shutil
import time

import pytest
import torch
from filelock import FileLock
from helpers import assert_same_state
from safetensors.torch import load_file
from torch.utils.data import Dataset
from training import QUICK, data, options, small_model, train_only, write_data

import mixerzoo
from mixerzoo.atomic import write_atomically
from mixerzoo.data.indexed import Chosen, IndexedSource
from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError, DataError, StorageError, TrainingError
from mixerzoo.inference.evaluate import evaluate_folder
from mixerzoo.train import Data, fit, train
from mixerzoo.train.checkpoint import TrainState, complete, newest
from mixerzoo.train.loop import Loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_its_files(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, epochs=25, lr=5e-3, mixup=0.0, cutmix=0.0, ema_decay=0.5)
    accuracy = fit(small_model(recipe), recipe, data(folder, recipe), options(tmp_path))
    assert accuracy.top1 == 1.0
    assert accuracy.num_images == 12
    judged = [line for line in lines(tmp_path) if "top1" in line]
    assert len(judged) == 25
    assert judged[-1]["top1"] == 1.0
    assert newest(tmp_path).run["step"] == 75


def test_the_average_is_what_remains(folder, tmp_path):
    model = small_model()
    loop = Loop(model, QUICK, data(folder), options(tmp_path), World())
    loop.run()
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averaged = loop.train_step.averaged.state_dict()
    loop.keep_average()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in averaged.items())
    assert any(not torch.equal(averaged[name], tensor) for name, tensor in trained.items())


@pytest.mark.parametrize(
    "change", [{}, {"ema_decay": 0.0}, {"opt": "muon"}, {"sam_rho": 0.1, "gsam_alpha": 0.2}], ids=str
)
def test_a_resumed_run_equals_an_uninterrupted_one(folder, tmp_path, change):
    """Stopped in the middle of an epoch, with a worker reading ahead, and in another process's shoes."""
    recipe = dataclasses.replace(QUICK, epochs=4, **change)
    whole = small_model(recipe)
    fit(whole, recipe, data(folder, recipe), options(tmp_path / "whole"))

    class StopError(Exception):
        pass

    def stops(step):
        if step == 7:
            raise StopError

    loop = Loop(
        small_model(recipe), recipe, data(folder, recipe), options(tmp_path / "parts", checkpoint_every=2), World()
    )
    watched = loop.watch.step
    loop.watch.step = lambda step, *rest: (stops(step), watched(step, *rest))
    with pytest.raises(StopError):
        loop.run()
    assert newest(tmp_path / "parts").run["step"] == 6
    torch.manual_seed(123)  # whatever the process drew before does not matter
    resumed = small_model(dataclasses.replace(recipe, seed=9))
    fit(resumed, recipe, data(folder, recipe), options(tmp_path / "parts", resume=True, workers=1))
    assert_same_state(resumed, whole)
    again = small_model(recipe)
    outcome = fit(again, recipe, data(folder, recipe), options(tmp_path / "parts", resume=True))
    assert outcome.num_images == 12  # nothing left to do
    assert_same_state(again, whole)


def test_a_checkpoint_is_of_one_moment(folder, tmp_path):
    """Training goes on while the copy is written: later steps must not show in it."""
    recipe = dataclasses.replace(QUICK, epochs=1)
    loop = Loop(small_model(recipe), recipe, train_only(folder, recipe), options(tmp_path), World())
    loop.step = 1
    before = {name: tensor.clone() for name, tensor in loop.state.model.state_dict().items()}
    with loop.checkpoints:
        loop.save()
        with torch.no_grad():
            for parameter in loop.state.model.parameters():
                parameter.fill_(7.0)
    TrainState(loop.state.model, loop.state.ema, loop.state.optimizer).load(newest(tmp_path).folder)
    assert all(torch.equal(loop.state.model.state_dict()[name], tensor) for name, tensor in before.items())
    loop.watch.close()


def test_the_newest_checkpoints_are_kept(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, epochs=2)
    fit(small_model(recipe), recipe, train_only(folder, recipe), options(tmp_path, checkpoint_every=1, keep=3))
    assert [path.name for path in complete(tmp_path / "checkpoints")] == [f"step-{i:08d}" for i in (4, 5, 6)]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_evaluation_may_be_left_out(folder, tmp_path):
    assert fit(small_model(), QUICK, train_only(folder), options(tmp_path)) is None
    assert not any("top1" in line for line in lines(tmp_path))


class Watched(Dataset):
    """Evaluation images; before each, something happens."""

    def __init__(self, inner, happens):
        self.inner, self.happens = inner, happens

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        self.happens()
        return self.inner[index]


def test_a_checkpoint_is_in_place_before_the_evaluation_that_follows_it_ends(folder, tmp_path):
    """A kill during a long evaluation costs nothing."""
    seen = []

    def look():
        deadline = time.monotonic() + 30
        while not (found := newest(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(found.run["step"] if found else None)

    recipe = dataclasses.replace(QUICK, epochs=1)
    whole = data(folder, recipe)
    fit(small_model(recipe), recipe, Data(whole.train, Watched(whole.evaluation, look)), options(tmp_path))
    assert seen[0] == 3


def test_an_evaluation_that_was_cut_off_is_made_up_for(folder, tmp_path):
    class StopError(Exception):
        pass

    def stop():
        raise StopError

    whole = data(folder)
    with pytest.raises(StopError):
        fit(small_model(), QUICK, Data(whole.train, Watched(whole.evaluation, stop)), options(tmp_path))
    assert newest(tmp_path).run["step"] == 3
    fit(small_model(), QUICK, whole, options(tmp_path, resume=True))
    assert [line["step"] for line in lines(tmp_path) if "top1" in line] == [3, 6, 9]


def test_a_second_job_is_kept_out(folder, tmp_path):
    fit(small_model(), QUICK, train_only(folder), options(tmp_path))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with FileLock(tmp_path / ".lock"), pytest.raises(TrainingError, match="Another job is training into"):
        fit(small_model(), QUICK, train_only(folder), options(tmp_path, resume=True))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_finished_model_is_not_overwritten(folder, tmp_path):
    mixerzoo.save_model(small_model(), tmp_path / "model")
    with pytest.raises(TrainingError, match="already holds a run"):
        train(QUICK, folder, options(tmp_path / "model"))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="is not a folder"):
        train(QUICK, folder, options(tmp_path / "file"))


def test_a_checkpoint_that_cannot_be_written_is_said(folder, tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(StorageError, match=r"step-00000003 .*cannot be|step-00000003 could not be written"):
        fit(small_model(), QUICK, train_only(folder), options(tmp_path, resume=True))


def test_what_a_kill_left_of_old_checkpoints_goes(folder, tmp_path):
    """Half of a removed checkpoint is neither taken for one nor kept."""
    left = tmp_path / "checkpoints" / "step-00000001.partial"
    left.mkdir(parents=True)
    (left / "__0_0.distcp").write_bytes(b"half")
    fit(small_model(), QUICK, train_only(folder), options(tmp_path, resume=True))
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000006", "step-00000009"]


def test_an_incomplete_checkpoint_is_replaced(folder, tmp_path):
    """One that was copied without its hidden file is not resumed from, and is not in the way either."""
    fit(small_model(), QUICK, train_only(folder), options(tmp_path, keep=3))
    for step in (6, 9):
        (tmp_path / "checkpoints" / f"step-{step:08d}" / ".metadata").unlink()
    fit(small_model(), QUICK, train_only(folder), options(tmp_path, resume=True, keep=3))
    assert [path.name for path in complete(tmp_path / "checkpoints")] == [f"step-{i:08d}" for i in (3, 6, 9)]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_a_label_beyond_the_models_classes_is_named(folder, tmp_path):
    source = data(folder).train
    source.data.folder.samples[5] = (source.data.folder.samples[5][0], 7)
    with pytest.raises(DataError, match=r"has a label 7, and the model has classes 0 to 1"):
        fit(small_model(), QUICK, Data(source), options(tmp_path))


def test_data_that_ends_is_said(folder, tmp_path):
    source = data(folder).train

    class Ends:
        num_images, classes, describe = source.num_images, source.classes, source.describe

        def micro_batches(self, share, first_step):
            return itertools.islice(source.micro_batches(share, first_step), 4)

    with pytest.raises(DataError, match="ended before step 4"):
        fit(small_model(), QUICK, Data(Ends()), options(tmp_path))


def test_an_existing_run_is_not_overwritten(folder, tmp_path):
    fit(small_model(), QUICK, data(folder), options(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match="already holds a run: add --resume"):
        fit(small_model(), QUICK, data(folder), options(tmp_path))
    other = dataclasses.replace(QUICK, lr=0.5)
    with pytest.raises(TrainingError, match=r"another recipe \(lr 0.001 -> 0.5\)"):
        fit(small_model(), other, data(folder, other), options(tmp_path, resume=True))
    wider = mixerzoo.Mixer.from_config(dataclasses.replace(small_model().config, embed_dim=24))
    with pytest.raises(TrainingError, match=r"another model \(embed_dim 16 -> 24\)"):
        fit(wider, QUICK, data(folder), options(tmp_path, resume=True))
    some = data(folder).train
    fewer = Data(IndexedSource(Chosen(some.data, list(range(16))), some.transform))
    with pytest.raises(TrainingError, match=r"another training split \(num_images 24 -> 16"):
        fit(small_model(), QUICK, fewer, options(tmp_path, resume=True))
    renamed = data(folder)
    renamed.train.classes = ["azure", "red"]
    with pytest.raises(TrainingError, match=r"another training split \(classes .*azure"):
        fit(small_model(), QUICK, renamed, options(tmp_path, resume=True))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("damage", ["run.json", ".metadata", "tensors", "format"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(folder, tmp_path, damage):
    whole = small_model()
    fit(whole, QUICK, data(folder), options(tmp_path))
    folder_of = newest(tmp_path).folder
    if damage == "format":
        (folder_of / "run.json").write_text('{"format": 1}')
    elif damage == "tensors":
        for path in folder_of.glob("*.distcp"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        (folder_of / damage).write_bytes(b"\x80garbage")
    with pytest.raises(TrainingError, match=rf"{folder_of}.*(delete that folder|another --out)"):
        fit(small_model(), QUICK, data(folder), options(tmp_path, resume=True))
    shutil.rmtree(folder_of)
    again = small_model()
    fit(again, QUICK, data(folder), options(tmp_path, resume=True))
    assert_same_state(again, whole)


def test_a_loss_that_is_no_number_stops_the_run(folder, tmp_path):
    recipe = dataclasses.replace(
        QUICK, opt="momentum", lr=1e30, clip_grad=0.0, warmup_epochs=0.0, mixup=0.0, cutmix=0.0
    )
    with pytest.raises(TrainingError, match=r"after step \d+ of 9; a lower lr.*No checkpoint was written"):
        fit(small_model(), recipe, data(folder, recipe), options(tmp_path))
    late = dataclasses.replace(recipe, lr=1e6, epochs=40)
    with pytest.raises(TrainingError, match=r"last good checkpoint is .*step-") as caught:
        fit(small_model(), late, train_only(folder, late), options(tmp_path / "late", checkpoint_every=1, keep=1))
    good = newest(tmp_path / "late")
    assert str(good.folder) in str(caught.value)
    model = small_model()
    loop = Loop(model, late, train_only(folder, late), options(tmp_path / "late", resume=True), World())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    loop.watch.close()


def test_gradients_are_clipped(folder, tmp_path):
    """With plain SGD a step is at most lr times the largest norm."""
    recipe = dataclasses.replace(
        QUICK, epochs=1, batch_size=24, opt="momentum", momentum=0.0, lr=1.0, warmup_epochs=0.0, weight_decay=0.0,
        ema_decay=0.0, clip_grad=1e-3, drop_path_rate=0.0,
    )  # fmt: skip
    model = small_model(recipe)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    fit(model, recipe, train_only(folder, recipe), options(tmp_path))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert 0 < (after - before).norm() <= 1.01e-3


@pytest.mark.parametrize("change", [{}, {"mixup": 0.0, "cutmix": 0.0}], ids=["mixed", "plain"])
def test_micro_batches_add_up_to_the_batch(folder, tmp_path, change):
    recipe = dataclasses.replace(QUICK, drop_path_rate=0.0, opt="momentum", **change)
    one, four = small_model(recipe), small_model(recipe)
    fit(one, recipe, train_only(folder, recipe), options(tmp_path / "one"))
    fit(four, recipe, train_only(folder, recipe), options(tmp_path / "four", accumulate=4))
    for (name, a), b in zip(one.state_dict().items(), four.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name


def test_checkpointing_and_compilation_change_nothing_but_rounding(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, epochs=1, opt="momentum", drop_path_rate=0.0)
    states = []
    for name, how in (("plain", {}), ("again", {"grad_checkpointing": True}), ("compiled", {"compile": True})):
        model = small_model(recipe)
        fit(model, recipe, train_only(folder, recipe), options(tmp_path / name, **how))
        states.append(model.state_dict())
    for name, plain in states[0].items():
        assert torch.equal(states[1][name], plain), name
        assert torch.allclose(states[2][name], plain, rtol=1e-4, atol=1e-5), name


def test_only_the_head_is_trained_if_that_is_asked(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, epochs=1, trainable="head", weight_decay=0.5, lr=0.1)
    model = small_model(recipe)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, recipe, train_only(folder, recipe), options(tmp_path))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_few_unreadable_images_are_skipped_and_many_stop_the_run(tmp_path):
    root = write_data(tmp_path / "data")
    bad = root / "train" / "red" / "3.png"
    bad.write_bytes(b"no image")
    tolerant = dataclasses.replace(QUICK, max_corrupt=0.05)
    for workers in (0, 1):
        out = tmp_path / f"run{workers}"
        fit(small_model(), tolerant, data(root, tolerant), options(out, workers=workers))
        (fault,) = newest(out).run["faults"].items()
        assert fault[0] == str(bad)
        assert "not an image" in fault[1]
        with pytest.raises(DataError) as caught:
            fit(small_model(), QUICK, data(root), options(tmp_path / f"strict{workers}", workers=workers))
        assert "1 of 24 training samples are unusable, more than max_corrupt=0.01" in str(caught.value)
        assert str(bad) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "(not an image" in str(caught.value)
    more = dataclasses.replace(tolerant, max_corrupt=0.5)  # may be raised when going on
    fit(small_model(), more, data(root, more), options(tmp_path / "run0", resume=True))
    (root / "test" / "red" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"test/red/3.png: not an image"):
        fit(small_model(), tolerant, data(root, tolerant), options(tmp_path / "test"))


def test_too_little_data(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, batch_size=100)
    with pytest.raises(DataError, match="24 images, fewer than one batch of 100"):
        fit(small_model(), recipe, data(folder, recipe), options(tmp_path))


def test_a_model_of_other_classes_is_refused(folder, tmp_path):
    model = mixerzoo.Mixer.from_config(dataclasses.replace(small_model().config, num_classes=3))
    with pytest.raises(DataError, match="3 classes, the training split 2"):
        fit(model, QUICK, folder, options(tmp_path))


def test_batches_that_cannot_be_shared_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size=8 cannot be shared equally by 1 processes with 3"):
        fit(small_model(), QUICK, data(folder), options(tmp_path, accumulate=3))


def test_sharding_needs_a_job(folder, tmp_path):
    with pytest.raises(ConfigError, match="torchrun"):
        fit(small_model(), QUICK, data(folder), options(tmp_path, shard=True))


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def broken(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, broken)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# whole runs


def test_train_leaves_a_folder_that_predicts(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, epochs=2, batch_size=12)
    accuracy = train(recipe, folder, options(tmp_path, weights_dtype=torch.float16))
    assert accuracy.num_images == 12
    name = f"local-dir:{tmp_path}"
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    model = mixerzoo.create_model(name, pretrained=True)
    assert model.config.drop_path_rate == recipe.drop_path_rate
    assert mixerzoo.labels(model) == ["blue", "red"]
    (prediction, *_) = mixerzoo.predict(model, folder / "test" / "blue")
    assert set(prediction.labels) == {"blue", "red"}
    assert abs(evaluate_folder(model, folder).accuracy.top1 - accuracy.top1) <= 1 / 12  # float16


def test_train_is_a_function_of_its_seed(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, epochs=1, batch_size=12)
    for run in ("a", "b"):
        train(recipe, folder, options(tmp_path / run))
    train(dataclasses.replace(recipe, seed=1), folder, options(tmp_path / "c"))
    a, b, c = ((tmp_path / run / "model.safetensors").read_bytes() for run in "abc")
    assert a == b
    assert a != c


def test_fine_tuning_starts_from_weights_at_another_size(folder, tmp_path):
    """The built-in checkpoint carried to 64 pixels by tiling, with a head for two classes."""
    recipe = dataclasses.replace(
        QUICK, pretrained=True, img_size=64, resize="tile", epochs=1, batch_size=6, holdout=0.25, opt="momentum",
        lr=0.01, head_bias=-1.0, drop_path_rescale=False,
    )  # fmt: skip
    accuracy = train(recipe, folder, options(tmp_path))
    assert accuracy.num_images == 6  # a quarter of the training split
    model = mixerzoo.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.config.image_hw == (64, 64)
    assert model.config.tokens_mlp_dim == 4 * mixerzoo.create_model("mixer_ti4_32").config.tokens_mlp_dim
    assert not model.config.drop_path_rescale
    assert model.num_classes == 2
