"""Parts of a source: how many of each class, which, and that the seed decides."""

import numpy as np
import pytest

from litevit_jax.data import order, subsets
from litevit_jax.data.sources import arrays, base, digits, folder


class Counted(base.Source):
    """Class 0 has 6 examples, class 1 has 4, class 2 has 2; counts what is read."""

    labels = (0, 1, 0, 1, 0, 2, 0, 1, 0, 2, 0, 1)

    def __init__(self, classes=("a", "b", "c")):
        self.reads, self._classes = 0, list(classes)

    @property
    def classes(self):
        return self._classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.reads += 1
        return {"image": index, "label": self.labels[index]}

    def name_of(self, index):
        return f"row {index}"

    def fingerprint(self):
        return "counted"


def take(source=None, *, shots=None, fraction=1.0, seed=0, **more):
    source = source or Counted()
    return subsets.training_subset(
        source, shots=shots, fraction=fraction, seed=seed, **more
    )


def rows(source):
    return [source[i]["image"] for i in range(len(source))]


def test_shots_take_that_many_of_each_class():
    part = take(shots=2)
    labels = [part[i]["label"] for i in range(len(part))]
    assert np.bincount(labels).tolist() == [2, 2, 2]
    assert part.classes == ["a", "b", "c"]
    assert part.name_of(0) == f"row {rows(part)[0]}"


def test_the_seed_decides_and_is_part_of_the_fingerprint():
    drawn = {seed: take(shots=1, seed=seed) for seed in range(8)}
    assert rows(drawn[3]) == rows(take(shots=1, seed=3))
    assert len({tuple(rows(part)) for part in drawn.values()}) > 1
    prints = {tuple(rows(part)): part.fingerprint() for part in drawn.values()}
    assert len(set(prints.values())) == len(prints)


def test_few_shots_are_among_more_shots():
    for seed in range(5):
        one, two = (rows(take(shots=n, seed=seed)) for n in (1, 2))
        assert set(one) < set(two)


def test_a_fraction_is_a_share_of_all_examples():
    half, quarter = take(fraction=0.5), take(fraction=0.25)
    assert len(half) == 6 and len(quarter) == 3
    assert set(rows(quarter)) < set(rows(half)) < set(range(12))


def test_without_either_the_source_is_itself():
    source = Counted()
    assert take(source) is source


def test_reading_stops_when_every_class_is_complete():
    source = digits.make(split="train")
    reads = []

    class Watched(Counted):
        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            reads.append(index)
            return source[index]

    part = take(Watched([str(d) for d in range(10)]), shots=1)
    assert len(part) == 10 and len(reads) < 100


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"shots": 3}, r"data.shots=3, but class 'c' has only 2 images \(1 of 3"),
        ({"shots": 0}, r"data.shots=0; expected at least 1 image"),
        ({"shots": 1, "fraction": 0.5}, r"data.shots=1 and data.fraction=0.5"),
        ({"fraction": 0.0}, r"data.fraction=0.0 of 12 examples; expected a share"),
        ({"fraction": 0.01}, r"leaves at least one"),
        ({"fraction": 1.5}, r"data.fraction=1.5"),
        ({"shots": 1, "long_tail": 9.0}, r"data.shots=1 and data.long_tail=9.0"),
        (
            {"fraction": 0.5, "of": "class"},
            r"fraction_of 'class' unknown; did you mean",
        ),
        ({"fraction": 0.1, "of": "classes"}, r"0.1 of 3 classes keeps none"),
        ({"long_tail": 0.5}, r"data.long_tail=0.5; expected how many times"),
    ],
)
def test_what_cannot_be_drawn_is_explained(kwargs, message):
    with pytest.raises(ValueError, match=message):
        take(**kwargs)


def test_shots_without_classes_are_refused():
    with pytest.raises(ValueError, match=r"data.shots=1 needs labels.*data.fraction"):
        take(Counted(classes=()), shots=1)


def test_a_held_out_part_and_the_rest_are_all_examples_by_the_seed_alone():
    rest, part = subsets.split_validation(Counted(), 0.25, seed=0)
    assert (len(rest), len(part)) == (9, 3)
    assert sorted(rows(rest) + rows(part)) == list(range(12))
    assert rows(subsets.split_validation(Counted(), 0.25, seed=0)[1]) == rows(part)
    others = {
        tuple(rows(subsets.split_validation(Counted(), 0.25, seed=s)[1]))
        for s in range(5)
    }
    assert len(others) > 1
    assert rest.fingerprint() != part.fingerprint()
    assert [part.label_of(i) for i in range(3)] == [part[i]["label"] for i in range(3)]


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0, -0.5])
def test_a_share_that_leaves_a_side_empty_is_refused(share):
    with pytest.raises(ValueError, match=rf"holdout.eval={share} of 12 .*both"):
        subsets.split_validation(Counted(), share, seed=0)


def test_joined_sources_follow_each_other():
    rest, part = subsets.split_validation(Counted(), 0.25, seed=0)
    both = subsets.join([part, rest])
    assert rows(both) == rows(part) + rows(rest)
    labels = [both.label_of(i) for i in range(12)]
    assert labels == [Counted.labels[row] for row in rows(both)]
    assert both.name_of(3) == f"row {rows(rest)[0]}"
    assert both.fingerprint() != subsets.join([rest, part]).fingerprint()
    assert subsets.join([rest]) is rest


def test_sources_of_other_classes_are_not_joined():
    with pytest.raises(ValueError, match=r"cannot be joined: number 2 has 3 classes"):
        subsets.join([Counted(), Counted(("a", "b", "d"))])


def hold_out(source=None, *, fraction=0.5, at_most=100, seed=0):
    return subsets.split_selection(
        source or Counted(), share=fraction, at_most=at_most, seed=seed
    )


def test_both_parts_make_up_the_source_and_every_class_gives_its_share():
    for seed in range(5):
        rest, held = hold_out(seed=seed)
        assert sorted(rows(rest) + rows(held)) == list(range(12))
        labels = [held[i]["label"] for i in range(len(held))]
        # Two of each; of 2 images a class gives no more than one.
        assert np.bincount(labels).tolist() == [2, 2, 1]
        assert [held.label_of(i) for i in range(len(held))] == labels


def test_the_seed_decides_what_is_held_out():
    drawn = {tuple(rows(hold_out(seed=seed)[1])) for seed in range(8)}
    assert len(drawn) > 1
    assert rows(hold_out(seed=3)[1]) == rows(hold_out(seed=3)[1])


def test_no_more_are_held_out_than_allowed_and_few_labels_are_read():
    source = digits.make(split="train")
    counted = Counted([str(d) for d in range(10)])
    counted.labels = [source.label_of(i) for i in range(len(source))]
    Length = type("Length", (Counted,), {"__len__": lambda self: len(self.labels)})
    counted.__class__ = Length
    rest, held = hold_out(counted, at_most=20)
    assert (len(rest), len(held)) == (1418, 20)
    assert counted.reads < 200
    labels = [counted.labels[i] for i in rows(held)]
    assert np.bincount(labels).tolist() == [2] * 10


def test_without_classes_the_held_out_part_is_drawn_from_all():
    rest, held = hold_out(Counted(classes=()), fraction=0.25)
    assert (len(rest), len(held)) == (9, 3)


def test_images_without_a_label_are_kept_for_training():
    source = Counted()
    source.labels = tuple(-1 if i < 6 else k for i, k in enumerate(source.labels))
    _, held = hold_out(source)
    assert len(held) and min(rows(held)) >= 6


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.6, 1.0, -0.1])
def test_a_share_that_cannot_be_held_out_is_refused(fraction):
    message = rf"data.holdout.select={fraction} of 12 .*(leaves nothing|\(0, 0.5\])"
    with pytest.raises(ValueError, match=message):
        hold_out(fraction=fraction)


def test_classes_of_one_image_cannot_be_divided():
    source = Counted()
    source.labels = (0, 1, 2)
    source.__class__ = type("Short", (Counted,), {"__len__": lambda self: 3})
    with pytest.raises(ValueError, match=r"of 3 training images in 3 classes leaves"):
        hold_out(source)


def test_labels_are_read_without_the_images(image_folder, tmp_path):
    root = image_folder(train=6, test=2)
    source = folder.make(split="train", dir=str(root))
    labels = [source[i]["label"] for i in range(6)]
    for path in (root / "train").rglob("*.png"):
        path.unlink()
    part = subsets.Subset(source, np.array([5, 0]))
    assert [source.label_of(i) for i in range(6)] == labels
    assert [part.label_of(0), part.label_of(1)] == [labels[5], labels[0]]
    np.savez(tmp_path / "x.npz", image=np.zeros((3, 2, 2), np.uint8), label=[2, 0, 1])
    held = arrays.make(split="train", dir=str(tmp_path / "x.npz"))
    assert [held.label_of(i) for i in range(3)] == [2, 0, 1]


class Many(Counted):
    """Ten classes of 60 examples, in an order of its own."""

    labels = tuple(np.random.default_rng(7).permutation(np.repeat(np.arange(10), 60)))

    def __init__(self):
        super().__init__([str(k) for k in range(10)])

    def label_of(self, index):
        return int(self.labels[index])


def counts(part):
    return np.bincount([part.label_of(i) for i in range(len(part))], minlength=10)


@pytest.mark.parametrize("of", subsets.FRACTIONS)
def test_a_smaller_fraction_is_part_of_a_larger_one(of):
    parts = [take(Many(), fraction=f, of=of, seed=2) for f in (0.1, 0.5, 1.0)]
    drawn = [set(rows(part)) for part in parts]
    assert drawn[0] < drawn[1] < drawn[2]
    assert [len(d) for d in drawn] == [60, 300, 600]
    assert rows(take(Many(), fraction=0.5, of=of, seed=3)) != rows(parts[1])
    assert parts[0].classes == [str(k) for k in range(10)]


def test_fractions_are_of_images_of_every_class_or_of_classes():
    def of(what, fraction=0.1):
        return counts(take(Many(), fraction=fraction, of=what)).tolist()

    assert of("balanced") == [6] * 10
    assert sorted(of("classes")) == [0] * 9 + [60]
    assert np.count_nonzero(of("classes", 0.16)) == 2  # the nearest number of them
    assert len(set(of("images"))) > 2  # over all classes: as it falls
    assert of("balanced", 0.001 * 2) == [1] * 10  # at least one of each


def test_nothing_said_draws_as_it_always_did():
    assert rows(take(fraction=0.5)) == rows(take(fraction=0.5, of="images"))


def test_a_long_tail_falls_geometrically_over_a_drawn_order_of_classes():
    found = counts(take(Many(), long_tail=20.0, seed=1))
    want = [60 * 20 ** (-k / 9) for k in range(10)]
    np.testing.assert_allclose(sorted(found, reverse=True), want, atol=0.5)
    assert found.max() / found.min() == 20
    other = counts(take(Many(), long_tail=20.0, seed=2))
    assert sorted(other) == sorted(found) and list(other) != list(found)
    flat = take(Many(), long_tail=1.0)
    assert counts(flat).tolist() == [60] * 10
    half = take(Many(), long_tail=20.0, seed=1, fraction=0.5, of="balanced")
    np.testing.assert_allclose(counts(half), found / 2, atol=1)
    assert set(rows(half)) < set(rows(take(Many(), long_tail=20.0, seed=1)))


class Uneven(Many):
    """Ten classes, the first of 20 examples and the last of as many as are left."""

    labels = (*(0,) * 20, *Many.labels[20:])


class Emptied(Counted):
    """A class without any example."""

    def __init__(self):
        super().__init__(("a", "b", "c", "none"))


def test_a_long_tail_asks_no_class_for_more_than_the_smallest_has():
    found = counts(take(Uneven(), long_tail=4.0))
    smallest = counts(Uneven()).min()
    assert found.max() == smallest and found.min() == round(smallest / 4)
    assert counts(take(Uneven(), long_tail=1000.0)).min() == 1  # never none
    with pytest.raises(ValueError, match=r"long_tail=2.0: a class of 4 has no images"):
        take(Emptied(), long_tail=2.0)


@pytest.mark.parametrize(
    "more", [{"long_tail": 2.0}, {"fraction": 0.5, "of": "classes"}]
)
def test_parts_by_class_need_classes(more):
    with pytest.raises(ValueError, match="needs labels, but the data has no classes"):
        take(Counted(classes=()), **more)


def drawn_classes(source, count, **how):
    """The labels of the first examples that training reads."""
    labels = [source.label_of(n) for n in range(len(source))]
    rows = (order.example_at(0, p, len(source), source.sampling) for p in range(count))
    return np.bincount([labels[row] for row in rows], minlength=3)


def test_sampling_by_classes_reads_each_as_often_and_changes_no_image():
    source = subsets.sampled(Counted(), "classes", seed=0)
    assert len(source) == 12 and rows(source) == list(range(12))  # as k-NN looks it up
    assert drawn_classes(source, 18).tolist() == [6, 6, 6]
    assert drawn_classes(source, 18 * 5).tolist() == [30, 30, 30]
    times = np.bincount(source.sampling, minlength=12)
    assert [sorted(times[np.array(Counted.labels) == k]) for k in range(3)] == [
        [1] * 6, [1, 1, 2, 2], [3, 3]]  # fmt: skip
    assert drawn_classes(Counted(), 12).tolist() == [6, 4, 2]
    assert subsets.sampled(plain := Counted(), "images", seed=0) is plain


def test_the_seed_of_sampling_is_part_of_the_fingerprint():
    made = [subsets.sampled(Counted(), "classes", seed) for seed in (0, 0, 1)]
    prints = [source.fingerprint() for source in made]
    assert prints[0] == prints[1] != prints[2] and prints[0] != "counted"


def test_sampling_by_classes_needs_one_label_for_each_image():
    class Lacking(Counted):
        labels = (0, 1, -1)

    with pytest.raises(ValueError, match=r"sampling=classes: 1 of 3 images have no la"):
        subsets.sampled(Lacking(), "classes", 0)
    with pytest.raises(ValueError, match=r"data\.sampling=classes needs labels"):
        subsets.sampled(Counted(classes=()), "classes", 0)
    several = Counted()
    several.multi_label = True
    with pytest.raises(ValueError, match=r"needs one label an image, but these have"):
        subsets.sampled(several, "classes", 0)
    with pytest.raises(ValueError, match=r"data\.sampling 'class' unknown; did you me"):
        subsets.sampled(Counted(), "class", 0)


def test_labels_of_an_example_are_one_for_its_class_alone():
    source = take(shots=2)
    for n in range(len(source)):
        assert source.labels_of(n).tolist() == np.eye(3)[source.label_of(n)].tolist()
