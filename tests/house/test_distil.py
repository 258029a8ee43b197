import copy
import itertools
import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from tailorbird.errors import DataError, StoreError
from tailorbird.graph.surgery import capture
from tailorbird.house.alternative import Sample
from tailorbird.house.bunches import in_halves, plan_bunches
from tailorbird.house.distil import Distillation, company, distil
from tailorbird.house.store import HouseStore
from tailorbird.progress import Silent
from tailorbird.train.beside import Crew
from tailorbird.train.recorded import Streams
from tests.train.tape import Tape

from .makers import OPTIONS, Killed, Watched, images, same, small_sample, teacher, weights


def run(folder, *, sample=None, progress=None, seed=0, spent=0.0, now=time.monotonic, **options):
    return distil(
        teacher(),
        sample or small_sample(),
        images(),
        replace(OPTIONS, **options),
        seed=seed,
        store=HouseStore(folder),
        spent=spent,
        progress=progress,
        now=now,
    )


def job(folder, *, sample=None, beside=Crew, **options):
    return Distillation(
        teacher(),
        sample or small_sample(),
        images(),
        replace(OPTIONS, **options),
        0,
        HouseStore(folder),
        torch.device("cpu"),
        beside=beside,
    )


def train(work, bunch, *, progress=None):
    with (progress or Silent()).task("distil", 1) as task:
        return work.train(bunch, number=0, seconds=math.inf, task=task)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run(tmp_path_factory.mktemp("reference"))


def trainable(sample):
    return [a for a in sample.alternatives if a.trainable]


def equal(left, right):
    return left.keys() == right.keys() and all(same(left[n], right[n]) for n in left)


def test_every_alternative_is_trained_and_inputs_are_left_alone(tmp_path):
    sample = small_sample()
    before = {n: weights(m) for n, m in sample.modules.items()}
    frozen = weights(teacher().module)
    random = torch.random.get_rng_state()
    done = run(tmp_path)
    assert done.keys() == sample.modules.keys()
    changed = 0
    for alternative in trainable(sample):
        old, new = before[alternative.name], done[alternative.name].state_dict()
        changed += any(not torch.equal(old[k], new[k]) for k in old)
        stored = HouseStore(tmp_path).load_trained(alternative.name)
        assert stored is not None
        assert stored[1]["relative_error"] > 0
    assert changed > len(trainable(sample)) / 3  # the others begin better than six steps end
    for name, tensors in before.items():
        assert all(torch.equal(v, sample.modules[name].state_dict()[k]) for k, v in tensors.items())
    assert all(torch.equal(v, teacher().module.state_dict()[k]) for k, v in frozen.items())
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize(
    ("batch", "epochs", "per_epoch", "total"),
    [(64, 2.0, 2, 4), (32, 3.0, 5, 15), (64, 0.1, 2, 1), (159, 4.0, 1, 4), (1000, 3.0, 1, 3)],
)
def test_a_short_last_batch_is_neither_trained_on_nor_counted(
    tmp_path, batch, epochs, per_epoch, total
):
    walk = job(tmp_path, batch_size=batch, epochs=epochs).walk
    assert walk.steps(epochs) == total
    sizes = [len(images) for images, _ in walk.epoch(0)]
    assert sizes == [min(batch, 160)] * per_epoch
    progress = Watched()
    run(tmp_path, batch_size=batch, epochs=epochs, learning_rate=1e-9, progress=progress)
    assert progress.steps == total


def test_training_brings_blocks_of_the_teacher_closer_to_what_they_replace(tmp_path):
    # Others start close: fitted to images, or pruned. 160 images needn't bring those any closer.
    far = [a for a in trainable(small_sample()) if (a.origin, a.variant) == ("teacher", "whole")]
    assert far
    run(tmp_path / "short", epochs=0.1, learning_rate=1e-6)
    run(tmp_path / "long", epochs=20.0)
    short, long = (
        sum(HouseStore(tmp_path / k).load_trained(a.name)[1]["relative_error"] for a in far)
        for k in ("short", "long")
    )
    assert long < 0.8 * short


def test_none_ends_worse_than_it_began(tmp_path):
    run(tmp_path)
    sample = small_sample()
    for alternative in trainable(sample):
        block = sample.blocks[alternative.block]
        probe, module = capture(teacher(), [block.input, block.output]), sample.modules
        errors = []
        for batch, _ in images().validation.batches(OPTIONS.batch_size):
            with torch.no_grad():
                seen = probe(batch)
                answer, wanted = module[alternative.name](seen[block.input]), seen[block.output]
            errors.append(float((answer - wanted).square().mean() / wanted.square().mean()))
        began = sum(errors) / len(errors)
        found = HouseStore(tmp_path).load_trained(alternative.name)[1]["relative_error"]
        assert found <= 1.0001 * began, alternative


def test_bunches_do_not_change_the_result(tmp_path, reference):
    options = replace(OPTIONS, memory_mb=1)
    bunches = plan_bunches(teacher(), small_sample(), trainable(small_sample()), options)
    assert len(bunches) > 1
    assert sorted(a.name for b in bunches for a in b) == [a.name for a in trainable(small_sample())]
    assert len(plan_bunches(teacher(), small_sample(), trainable(small_sample()), OPTIONS)) == 1
    assert equal(run(tmp_path, memory_mb=1), reference)


def test_a_poisoned_alternative_stops_alone_and_says_why(tmp_path, reference):
    sample = small_sample()
    victim = trainable(sample)[1].name
    modules = copy.deepcopy(sample.modules)
    with torch.no_grad():
        next(modules[victim].parameters()).fill_(float("inf"))
    poisoned = Sample(
        blocks=sample.blocks,
        alternatives=sample.alternatives,
        modules=modules,
        rejections=sample.rejections,
    )
    done = run(tmp_path, sample=poisoned)
    assert equal(done, {n: m for n, m in reference.items() if n != victim})
    stored = HouseStore(tmp_path).load_trained(victim)
    assert stored is not None
    assert "not finite; lower house.learning_rate" in stored[1]["stopped"]
    assert victim not in run(tmp_path, sample=poisoned)


@pytest.mark.parametrize(("role", "words"), [("train", "training"), ("validation", "validation")])
def test_a_poisoned_image_is_named_and_stops_nobody_for_good(tmp_path, reference, role, words):
    split = getattr(images(), role)
    pixels = split.images.float() / 255
    pixels[7, 0, 3, 3] = float("nan")
    poisoned = replace(images(), **{role: replace(split, images=pixels)})
    with pytest.raises(DataError, match=rf"1 of \d+ {words} images hold NaN.*: image 7 \(count"):
        distil(teacher(), small_sample(), poisoned, OPTIONS, seed=0, store=HouseStore(tmp_path))
    assert equal(run(tmp_path), reference)


def test_out_of_memory_halves_the_bunch_and_drops_nothing(tmp_path, reference):
    sizes, whole = [], job(tmp_path)

    def tight(bunch):
        sizes.append(len(bunch))
        if len(bunch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(whole, bunch)

    bunch = trainable(small_sample())
    done = in_halves(bunch, tight, whole.give_up)
    assert done.keys() == {a.name for a in bunch}
    assert equal(done, {name: reference[name] for name in done})
    assert sizes[0] == len(bunch) > 2
    assert equal(run(tmp_path), reference)


def test_a_half_does_not_go_on_from_the_state_of_the_whole(tmp_path, reference):
    with pytest.raises(Killed):
        run(tmp_path, progress=Watched(3))
    half = trainable(small_sample())[:2]
    done = train(job(tmp_path), half)
    assert equal(done, {name: reference[name] for name in done})


def test_out_of_memory_even_alone_is_recorded(tmp_path):
    for alternative in trainable(small_sample()):
        job(tmp_path).give_up(alternative)
        stored = HouseStore(tmp_path).load_trained(alternative.name)
        assert stored is not None
        assert "out of memory even alone" in stored[1]["stopped"]
    assert run(tmp_path).keys() == {a.name for a in small_sample().alternatives if not a.trainable}


def test_resuming_from_a_bunch_checkpoint_equals_an_uninterrupted_run(tmp_path, reference):
    HouseStore(tmp_path).save_sample(small_sample())
    again = HouseStore(tmp_path).load_sample()  # its modules list their weights in another order
    with pytest.raises(Killed):
        run(tmp_path, progress=Watched(3))
    assert list(HouseStore(tmp_path).checkpoint(0).iterdir())
    rest = Watched()
    assert equal(run(tmp_path, sample=again, progress=rest), reference)
    assert (rest.resumed, rest.steps) == ([2], 2), "the first epoch was trained again"
    assert not HouseStore(tmp_path).checkpoint(0).exists()
    none = Watched()
    assert equal(run(tmp_path, progress=none), reference)
    assert none.steps == 0


def test_a_bunch_that_was_begun_otherwise_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, progress=Watched(3))
    with pytest.raises(StoreError, match=r"(?s)house.epochs: 2.0 there, 9.0 now.*seed: 0 there"):
        run(tmp_path, epochs=9.0, seed=1)


def test_the_state_of_an_earlier_version_is_refused_and_what_is_done_is_kept(tmp_path, reference):
    with pytest.raises(Killed):
        run(tmp_path, memory_mb=1, progress=Watched(5))
    done = {path.stem for path in (tmp_path / "trained").glob("*.json")}
    assert done
    old = tmp_path / "bunches" / "001.safetensors"
    old.write_bytes(b"what that version wrote")
    with pytest.raises(StoreError, match=r"001.safetensors is the state .* remove the file"):
        run(tmp_path, memory_mb=1)
    old.unlink()
    assert equal(run(tmp_path, memory_mb=1), reference)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "bit"])
def test_a_damaged_checkpoint_is_made_anew(tmp_path, reference, damage):
    with pytest.raises(Killed):
        run(tmp_path, progress=Watched(3))
    path = max(HouseStore(tmp_path).checkpoint(0).glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[-3] ^= 0x40
    path.write_bytes(
        {
            "cut": bytes(content[:-100]),
            "garbage": b"\xff" * 64,
            "empty": b"",
            "bit": bytes(content),
        }[damage]
    )
    assert equal(run(tmp_path), reference)


def test_a_damaged_trained_alternative_is_trained_anew(tmp_path, reference):
    run(tmp_path)
    victim = trainable(small_sample())[0].name
    path = tmp_path / "trained" / f"{victim}.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert equal(run(tmp_path), reference)


def test_minutes_end_the_training_with_all_alternatives(tmp_path):
    done = run(tmp_path, epochs=10_000.0, minutes=0.005)
    assert done.keys() == small_sample().modules.keys()


def test_time_that_is_spent_ends_training_within_an_epoch(tmp_path):
    clock = itertools.count(0.0, 100.0)
    progress = Watched()
    done = run(tmp_path, epochs=50.0, minutes=1.0, progress=progress, now=clock.__next__)
    assert progress.steps == 1
    assert done.keys() == small_sample().modules.keys()


def test_what_earlier_processes_spent_is_taken_off_the_minutes(tmp_path):
    made = []
    for spent in (0.0, 45.0):
        progress = Watched()
        clock = itertools.count(0.0, 1.0)
        options = {"epochs": 50.0, "minutes": 1.0, "spent": spent, "now": clock.__next__}
        run(tmp_path / str(spent), progress=progress, **options)
        made.append(progress.steps)
    assert made[0] > 2 * made[1] > 0


def dropping():
    """The sample with dropout in the first two that are trained."""
    sample = small_sample()
    modules = copy.deepcopy(sample.modules)
    for alternative in trainable(sample)[:2]:
        module = modules[alternative.name]
        layers = {n: part for n, part in module.named_modules() if isinstance(part, nn.Conv2d)}
        name, layer = next(iter(layers.items()))
        module.set_submodule(name, nn.Sequential(layer, nn.Dropout(0.1)))
    return replace(sample, modules=modules)


def test_neither_company_nor_workers_nor_a_kill_change_the_bits(tmp_path):
    sample, bunch = dropping(), trainable(small_sample())[:4]
    alone = {}
    for number, alternative in enumerate(bunch):
        alone |= train(job(tmp_path / f"{number}", sample=sample), [alternative])
    crew = job(tmp_path / "crew", sample=sample, beside=lambda: Crew(workers=3, threads=1))
    with pytest.raises(Killed):
        train(crew, bunch, progress=Watched(3))
    rest = Watched()
    assert equal(train(crew, bunch, progress=rest), alone)
    assert rest.resumed == [2]
    plain = train(job(tmp_path / "plain"), bunch)
    differ = [name for name in alone if not same(alone[name], plain[name])]
    assert set(differ) <= {a.name for a in bunch[:2]}, "only those with dropout may differ"
    assert differ


def test_recorded_steps_train_to_the_same_bits_also_after_a_kill(tmp_path):
    sample, bunch, tapes, said = dropping(), trainable(small_sample())[:4], [], []

    def recorded(room=4):
        tapes.append(Tape(room))
        return Streams(tapes[-1], said.append)

    options = {"sample": sample, "epochs": 4.0}
    written = train(job(tmp_path / "0", **options, beside=lambda: recorded(0)), bunch)
    assert len(said) == 1
    assert "too little memory" in said.pop()
    work = job(tmp_path / "1", **options, beside=recorded)
    with pytest.raises(Killed):
        train(work, bunch, progress=Watched(6))
    assert equal(train(work, bunch), written)
    assert said == []
    assert [tape.recorded for tape in tapes] == [0, len(bunch), len(bunch)]
    assert min(tape.replayed for tape in tapes[1:]) > len(bunch)


def test_a_cpu_gives_each_alternative_its_share_of_the_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    try:
        assert company(torch.device("cpu"), 3, print)() == Crew(workers=3, threads=2)
        assert company(torch.device("cpu"), 1, print)() == Crew(workers=1, threads=7)
    finally:
        torch.set_num_threads(before)
