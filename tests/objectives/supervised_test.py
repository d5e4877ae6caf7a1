"""Classification: parity with the reference, pooling, heads and their state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import utils

from litevit_jax import trees
from litevit_jax.models import layers, vit
from litevit_jax.objectives import mae, supervised
from tests import golden
from tests import params as parameters

KEY = jax.random.key(0)
ENCODER = {"width": 24, "depth": 1, "num_heads": 3, "patch_size": 4}
IMAGES = np.random.default_rng(7).normal(size=(6, 16, 16, 3)).astype(np.float32)
BATCH = {"image": IMAGES, "label": np.array([0, 1, 2, 3, 4, 0])}


def make(**kwargs):
    return supervised.make(
        **{"encoder": ENCODER, "num_classes": 5, "dtype": "float32"} | kwargs
    )


@functools.cache
def compiled(objective, name):
    """One of the objective's methods; compiled once for all tests."""
    return jax.jit(getattr(objective, name))


def start(objective, seed=0):
    """Random parameters, state and teacher."""
    return parameters.start(objective, BATCH, seed=seed)


def recorded(objective):
    """The parameters behind recorded values, by path.

    The reference's learned positions hold the sin-cos table there.
    """
    shapes = parameters.shapes_of(objective, {"image": golden.images(2)}).params
    params = golden.params_like(shapes)
    params["encoder"]["pos_embed"] = layers.sincos_table((14, 14), 192, "sincos")[None]
    return trees.flatten(params)


@pytest.fixture(scope="module")
def recorded_logits():
    """Pool -> logits, of one encoder, which is compiled once."""
    encoder = {"variant": "tiny", "pos_embed": "learned_sincos"}
    made = {
        pool: make(encoder=encoder, num_classes=1000, pool=pool)
        for pool in ("avg", "cls")
    }
    own = {pool: recorded(objective) for pool, objective in made.items()}

    @jax.jit
    def run(arrays, image):
        return {
            pool: objective.predict(
                trees.nest({name: arrays[name] for name in own[pool]}),
                {},
                {"image": image},
            )["logits"]
            for pool, objective in made.items()
        }

    return run(own["avg"] | own["cls"], golden.images(2))


@pytest.mark.parametrize(
    ("pool", "first", "last", "argmax"),
    [
        (
            "avg",
            [0.52863, 0.426949, 0.143044, 0.756373],
            [-0.1026, 0.577825, 0.345486, 0.140178],
            [372, 372],
        ),
        ("cls", [0.612886, 0.0430752, 0.318717, -0.131084], None, [330, 372]),
    ],
)
def test_recorded_logits(pool, first, last, argmax, recorded_logits):
    logits = recorded_logits[pool]
    golden.assert_close(logits[0, :4], first)
    if last is not None:
        golden.assert_close(logits[1, 996:], last)
    assert logits.argmax(axis=1).tolist() == argmax


def count(encoder, **kwargs):
    """Parameters at full size, of as many equal blocks as the variant has."""

    def at(depth):
        sizes = encoder | {"depth": depth}
        objective = make(encoder=sizes, num_classes=1000, **kwargs)
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        return parameters.shapes_of(objective, {"image": image}).params

    return parameters.size_at(vit.make_encoder(**encoder).depth, at)


@pytest.mark.parametrize(
    ("variant", "total", "with_two_heads"),
    [
        ("tiny", 5_717_416, 5_910_800),
        ("small", 22_050_664, 22_436_432),
        ("base", 86_567_656, 87_338_192),
        ("large", 304_326_632, 305_353_680),
        ("huge", 632_045_800, 633_329_360),
    ],
)
def test_parameter_counts_with_1000_classes(variant, total, with_two_heads):
    encoder, teacher = {"variant": variant}, {"variant": "tiny", "depth": 1}
    assert count(encoder) == total
    assert count(encoder, teacher=teacher, distill={}) == with_two_heads


RPE = {"variant": "tiny", "pos_embed": "learned_sincos", "init_style": "rpe"}


def test_recorded_logits_with_relative_position_bias():
    """Of the authors' model of 2023, all its parameters filled."""
    objective = make(encoder=RPE | {"rpe_style": "v2023"}, num_classes=1000)
    image, params = golden.images(2), trees.nest(recorded(objective))
    logits = jax.jit(objective.predict)(params, {}, {"image": image})["logits"]
    golden.assert_close(logits[0, :4], [0.498319, 0.503558, 0.0260327, 0.59535])
    golden.assert_close(logits[1, 996:], [-0.221547, 0.756007, 0.802523, -0.35248])
    assert logits.argmax(axis=1).tolist() == [802, 802]


@pytest.mark.parametrize(
    ("style", "total"),
    [("v2023", 5_825_128), ("qv_bias", 5_820_520), ("fused", 5_822_824)],
)
def test_parameter_counts_with_relative_position_bias(style, total):
    assert count(RPE | {"rpe_style": style}) == total


def test_the_small_head_starts_at_a_thousandth():
    objective = make(head="linear_small", num_classes=200)
    head = jax.jit(lambda batch: objective.init(KEY, batch).params["head"])
    fc = head(BATCH)["fc"]  # the encoder's draws are left out
    np.testing.assert_allclose(fc["kernel"].std(), 2e-5, rtol=0.05)
    np.testing.assert_array_equal(fc["bias"], 0)


@pytest.fixture(scope="module", params=["linear", "probe", "probe_bn"])
def with_head(request):
    pool = "cls" if request.param.startswith("probe") else "avg"
    objective = make(head=request.param, pool=pool, label_smoothing=0.1)
    return objective, start(objective)


def test_loss_is_smoothed_cross_entropy(with_head):
    objective, (params, state, teacher) = with_head
    loss, (metrics, _) = compiled(objective, "loss")(params, state, teacher, BATCH, KEY)
    logits = np.asarray(training_logits(objective, params, state), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = 0.9 * np.eye(5)[BATCH["label"]] + 0.02
    expected = -(target * log_probs).sum(-1).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    top1 = (logits.argmax(-1) == np.asarray(BATCH["label"])).mean()
    np.testing.assert_allclose(metrics["top1"], 100 * top1, rtol=1e-6)


def training_logits(objective, params, state):
    """Logits with BatchNorm, where there is one, written out over the batch."""
    found = compiled(objective, "predict")(params, state, BATCH)
    x = np.asarray(found["features"], np.float64)
    if state:
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    return x @ params["head"]["fc"]["kernel"] + params["head"]["fc"]["bias"]


def test_only_batch_norm_has_state(with_head):
    objective, (params, state, teacher) = with_head
    assert teacher == {}
    assert bool(state) == bool(objective.needs_whole_batch) == objective.head.batch_norm
    loss = compiled(objective, "loss")
    _, (_, new_state) = loss(params, state, teacher, BATCH, KEY)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    if state:
        features = compiled(objective, "predict")(params, state, BATCH)["features"]
        mean = 0.9 * state["head"]["bn"]["mean"] + 0.1 * features.mean(axis=0)
        got = new_state["head"]["bn"]["mean"]
        np.testing.assert_allclose(got, mean, rtol=1e-4, atol=1e-6)


def test_evaluation_uses_running_statistics():
    objective = make(head="probe_bn", pool="cls")
    params, state, _ = start(objective)
    predict = compiled(objective, "predict")
    whole = predict(params, state, BATCH)["logits"]
    one = predict(params, state, {"image": BATCH["image"][2:3]})["logits"]
    np.testing.assert_allclose(one, whole[2:3], atol=1e-5)
    shifted = jax.tree.map(lambda x: x + 1, state)
    assert abs(predict(params, shifted, BATCH)["logits"] - whole).max() > 1e-3


def layer_norm(x, norm):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * norm["scale"] + norm["bias"]


def test_average_pooling_norms_after_the_mean():
    objective = make()
    params = start(objective).params
    assert "norm" not in params["encoder"]
    variables = {"params": params["encoder"]}
    _, found = compiled(objective.encoder, "apply")(variables, BATCH["image"])
    x = np.asarray(found["pre_norm"][:, 1:]).mean(axis=1)
    expected = layer_norm(x, params["head"]["fc_norm"])
    features = compiled(objective, "predict")(params, {}, BATCH)["features"]
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_frozen_encoder_gets_no_gradient():
    objective = make(frozen_encoder=True, pool="cls", head="probe")
    params = start(objective).params
    grads = jax.jit(jax.grad(lambda p: objective.loss(p, {}, {}, BATCH, KEY)[0]))(
        params
    )
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads["encoder"]))
    assert abs(grads["head"]["fc"]["kernel"]).max() > 0


def test_predictions_are_float32_whatever_trains():
    half, full = make(dtype="bfloat16"), make(dtype="float32")
    params = start(full).params
    got, want = (compiled(o, "predict")(params, {}, BATCH) for o in (half, full))
    assert half.encoder.dtype == "bfloat16"
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)


def test_soft_labels_equal_hard_ones():
    objective = make(label_smoothing=0.1)
    params = start(objective).params
    soft = BATCH | {"label": np.eye(5, dtype=np.float32)[BATCH["label"]]}
    loss = compiled(objective, "loss")
    hard, found = (loss(params, {}, {}, batch, KEY)[0] for batch in (BATCH, soft))
    np.testing.assert_allclose(hard, found, rtol=1e-6)


def test_drop_path_makes_the_loss_depend_on_the_key_and_slot():
    objective = make(encoder=ENCODER | {"depth": 2, "drop_path": 0.5})
    params = start(objective).params
    loss = jax.jit(lambda batch, key: objective.loss(params, {}, {}, batch, key)[0])
    assert loss(BATCH, KEY) == loss(BATCH, KEY) != loss(BATCH, jax.random.key(1))
    order = np.array([4, 0, 5, 2, 1, 3])
    moved = {name: x[order] for name, x in BATCH.items()} | {"slot": order}
    np.testing.assert_allclose(loss(moved, KEY), loss(BATCH, KEY), rtol=1e-5)


def test_an_mae_encoder_fits_by_name():
    pretrain = mae.make(
        encoder=ENCODER, decoder={"width": 16, "depth": 1, "num_heads": 2}
    )
    probe = make(encoder=ENCODER | {"pos_embed": "sincos"}, pool="cls")
    trees = [jax.eval_shape(o.init, KEY, BATCH).params for o in (pretrain, probe)]
    assert trees[0]["encoder"] == trees[1]["encoder"]


TEACHER = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4}


def distilled(pool="avg", **distill):
    return make(teacher=TEACHER | {"pool": pool}, distill=distill, label_smoothing=0.1)


@pytest.fixture(scope="module")
def student():
    """(params, teacher)."""
    params, state, teacher = start(distilled())
    assert state == {}
    return params, teacher


def two_logits(objective, params):
    """Logits of the label's head and of the teacher's head, written out."""
    variables = {"params": params["encoder"]}
    tokens, _ = compiled(objective.encoder, "apply")(variables, BATCH["image"])
    return [
        head(params[name], np.asarray(pooled, np.float64))
        for name, pooled in (
            ("head", tokens[:, 1:].mean(axis=1)),
            ("head_dist", tokens[:, 0]),
        )
    ]


def head(params, x):
    x = layer_norm(x, params["fc_norm"])
    return np.asarray(x @ params["fc"]["kernel"] + params["fc"]["bias"], np.float64)


def teacher_logits(objective, teacher):
    assert objective.distill is not None
    return compiled(objective.distill, "logits")(teacher, BATCH["image"])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_the_teacher_is_a_classifier_of_the_package(pool):
    objective = distilled(pool)
    assert objective.frozen_teacher and not make().frozen_teacher
    teacher = start(objective).teacher
    alone = make(encoder=TEACHER, pool=pool)
    shapes = parameters.shapes_of(alone, BATCH).params
    assert jax.tree.map(jnp.shape, teacher) == jax.tree.map(jnp.shape, shapes)
    got = teacher_logits(objective, teacher)
    want = compiled(alone, "predict")(teacher, {}, BATCH)["logits"]
    np.testing.assert_allclose(got, want, rtol=1e-6)


SETTINGS = [{}, {"alpha": 0.3}, {"hard": False, "tau": 3.0, "alpha": 0.8}]


@pytest.fixture(scope="module")
def distilled_losses(student):
    """Loss and metrics under each of SETTINGS, of one program."""
    made, (params, teacher) = [distilled(**settings) for settings in SETTINGS], student

    @jax.jit
    def run(*variables):
        return [objective.loss(*variables, BATCH, KEY) for objective in made]

    return run(params, {}, teacher)


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_distillation_adds_the_loss_of_the_second_head(
    number, student, distilled_losses
):
    settings, (loss, (metrics, _)) = SETTINGS[number], distilled_losses[number]
    objective, (params, teacher) = distilled(**settings), student
    first, second = two_logits(objective, params)
    target = 0.9 * np.eye(5)[BATCH["label"]] + 0.02
    label_loss = -(target * log_softmax(first)).sum(-1).mean()
    wanted = np.asarray(teacher_logits(objective, teacher), np.float64)
    if settings.get("hard", True):
        chosen = np.eye(5)[wanted.argmax(-1)]
        imitation = -(chosen * log_softmax(second)).sum(-1).mean()
    else:
        tau = settings["tau"]
        p, q = log_softmax(wanted / tau), log_softmax(second / tau)
        imitation = (np.exp(p) * (p - q)).sum() * tau**2 / second.size
    alpha = settings.get("alpha", 0.5)
    want = (1 - alpha) * label_loss + alpha * imitation
    np.testing.assert_allclose(loss, want, rtol=2e-5)
    np.testing.assert_allclose(metrics["class_loss"], label_loss, rtol=2e-5)
    np.testing.assert_allclose(metrics["distill_loss"], imitation, rtol=2e-5, atol=1e-6)


def test_the_prediction_is_the_mean_of_both_heads(student):
    objective, (params, _) = distilled(), student
    logits = compiled(objective, "predict")(params, {}, BATCH)["logits"]
    first, second = two_logits(objective, params)
    np.testing.assert_allclose(logits, (first + second) / 2, rtol=1e-4, atol=1e-5)
    assert abs(first - second).max() > 0.01


def test_a_student_that_is_its_teacher_has_no_soft_loss():
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    soft = distilled(hard=False).distill
    assert soft is not None and abs(soft.loss(logits, logits)) < 1e-6


def test_no_gradient_reaches_the_teacher(student):
    objective, (params, teacher) = distilled(hard=False, tau=2.0), student
    loss = lambda p, t: objective.loss(p, {}, t, BATCH, KEY)[0]  # noqa: E731
    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, teacher)
    assert all(not leaf.any() for leaf in jax.tree.leaves(others))
    assert all(leaf.any() for leaf in jax.tree.leaves(own["head_dist"]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"teacher": TEACHER}, r"distill=None; .*needs both objective.teacher"),
        ({"distill": {}}, r"teacher=None and distill=\{\}"),
        (
            {"teacher": TEACHER, "distill": {}, "pool": "cls"},
            r"pool='cls' and head='linear'; .*expected pool='avg'",
        ),
        (
            {"teacher": TEACHER, "distill": {"alpha": 1.5}},
            r"distill.alpha=1.5, .*expected 0 <= alpha <= 1",
        ),
        (
            {"teacher": TEACHER | {"pool": "max"}, "distill": {}},
            r"teacher.pool 'max' unknown; choose from avg, cls",
        ),
        ({"pool": "mean"}, r"pool 'mean' unknown; choose from avg, cls"),
        ({"head": "liner"}, r"head 'liner' unknown; did you mean linear"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0, expected 0 <= value < 1"),
        ({"num_classes": 0}, r"num_classes=0, expected at least 1"),
    ],
)
def test_errors_say_what_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_binary_cross_entropy_is_that_of_each_class_by_itself():
    logits = np.array([[2.0, -1.0, 0.5], [-30.0, 30.0, 0.0]], np.float32)
    target = np.array([[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]], np.float32)
    chance = 1 / (1 + np.exp(-logits.astype(np.float64)))
    each = target * np.log(chance) + (1 - target) * np.log1p(-chance)
    loss, metrics = supervised._binary(jnp.asarray(logits), jnp.asarray(target))
    np.testing.assert_allclose(loss, -np.mean(each), rtol=1e-5)
    np.testing.assert_allclose(metrics["label_acc"], 100 * 4 / 6, rtol=1e-6)


def test_loss_of_several_labels_reads_them_and_not_the_label():
    objective = make(loss="bce")
    assert objective.multi_label and not make().multi_label
    variables = start(objective)
    labels = np.eye(6, 5, dtype=np.uint8) | np.eye(6, 5, 1, dtype=np.uint8)

    def loss(batch):
        arguments = (variables.params, variables.model_state, {}, batch, KEY)
        return compiled(objective, "loss")(*arguments)[0]

    batch = BATCH | {"labels": labels, "index": np.arange(6), "slot": np.arange(6)}
    out = objective.predict(variables.params, variables.model_state, batch)
    want, _ = supervised._binary(out["logits"], labels.astype(np.float32))
    np.testing.assert_allclose(loss(batch), want, rtol=1e-5)
    np.testing.assert_array_equal(loss(batch), loss(batch | {"label": np.full(6, -1)}))
    assert loss(batch) != loss(batch | {"labels": 1 - labels})


def test_settings_for_one_label_an_image_are_refused_with_several():
    with pytest.raises(ValueError, match=r"loss='bce' with label_smoothing=0\.1"):
        make(loss="bce", label_smoothing=0.1)
    with pytest.raises(
        ValueError, match=r"objective\.loss 'bec' unknown; did you mean"
    ):
        make(loss="bec")


def test_balanced_weights_are_those_of_scikit_learn():
    counts = (6, 3, 0, 1)
    labels = np.repeat(np.arange(4), counts)
    want = utils.compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    weights = supervised._weights("balanced", counts)
    np.testing.assert_allclose(np.array(weights)[[0, 1, 3]], want)
    assert weights[2] == 1.0 and supervised._weights(None, counts) is None
    assert supervised._weights("balanced", None) is None  # a model that only predicts
    with pytest.raises(ValueError, match=r"class_weights 'balance' unknown; did you m"):
        supervised._weights("balance", counts)


def test_a_class_weighs_in_the_loss_as_its_weight_says():
    objective = make(class_weights="balanced", class_counts=(6, 3, 2, 1, 4))
    plain, weights = make(), np.array(objective.weights)
    variables = start(objective)
    batch = BATCH | {"index": np.arange(6), "slot": np.arange(6)}
    arguments = (variables.params, variables.model_state)
    logits = plain.predict(*arguments, batch)["logits"]
    each = -jax.nn.log_softmax(logits)[np.arange(6), BATCH["label"]]
    loss = compiled(objective, "loss")(*arguments, {}, batch, KEY)[0]
    np.testing.assert_allclose(loss, (weights[BATCH["label"]] * each).mean(), rtol=1e-5)


def test_binary_cross_entropy_weighs_a_class_where_an_image_has_it():
    logits, target = jnp.array([[0.3, -0.7]]), jnp.array([[1.0, 0.0]])
    for weights, want in ((None, 1.0), ((3.0, 5.0), 3.0)):
        loss, _ = supervised._binary(logits, target, weights)
        own, other = np.log1p(np.exp(-0.3)), np.log1p(np.exp(-0.7))
        np.testing.assert_allclose(loss, (want * own + other) / 2, rtol=1e-6)
