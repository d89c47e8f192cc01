"""NAD as a whole: who trains, what is compared, and what is refused."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from torch import nn

from backdoorkit import Need
from backdoorkit.api import (
    DefenseTask,
    ImageSet,
    InputError,
    StructureError,
    batches,
    find_structure,
)
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images, tiny_network, tiny_victim
from backdoorkit_nad import NADConfig, backdoorkit_defenses
from backdoorkit_nad._defense import NAD, compared_layers
from backdoorkit_nad._distillation import AttentionDistillation, cut_out

SHAPE = (3, 16, 16)
STAGES = ("network.bn1", "network.bn2")  # 16 x 16 and 8 x 8


def defend(model, clean=None, **options):
    options = {"precision": "float32", "epochs": 1, "teacher_epochs": 1, **options}
    task = DefenseTask(
        method="nad",
        num_classes=4,
        image_shape=SHAPE,
        resources={
            Need.WEIGHTS: model.eval(),
            Need.CLEAN_SAMPLES: tiny_images(48) if clean is None else clean,
        },
    )
    defense, context = NAD(NADConfig(**options)), tiny_context("nad")
    defense.check(context.structure(model))
    return defense.run(task, context)


def distillation(maps, teacher, beta):
    return AttentionDistillation(
        maps,
        teacher,
        find_structure(teacher, SHAPE),
        dict.fromkeys(STAGES, beta),
        distance="squared",
        power=2.0,
        cutout=0,
        generator=torch.Generator(),
    )


def distilled(student, teacher, beta, **options):
    """The hooks after ``student`` was trained towards ``teacher``, in place."""
    config = NADConfig(schedule="constant", precision="float32", batch_size=16, **options)
    with find_structure(student, SHAPE).feature_maps(student) as maps:
        hooks = distillation(maps, teacher, beta)
        tiny_context("nad").fit(student, tiny_images(64), config, hooks=hooks)
    return hooks


def test_without_beta_it_is_fine_tuning_of_the_victim():
    config = NADConfig(beta=(0.0, 0.0), epochs=2, teacher_epochs=1, precision="float32")
    victim, tuned, reserve = tiny_network(), tiny_network(), tiny_images(48)
    context = tiny_context("nad")
    context.fit(copy.deepcopy(tuned), reserve, attrs.evolve(config, epochs=1))  # the teacher's turn
    context.fit(tuned, reserve, config)
    repaired = defend(victim, reserve, beta=(0.0, 0.0), epochs=2).model.state_dict()
    assert all(torch.equal(value, repaired[name]) for name, value in tuned.state_dict().items())


def test_with_beta_the_weights_come_out_otherwise():
    plain, pulled = (defend(tiny_network(), beta=beta).model for beta in ((0.0,), (16.0,)))
    assert not torch.equal(plain.network.conv1.weight, pulled.network.conv1.weight)


def test_the_student_starts_from_the_victim_not_from_the_teacher():
    victim = tiny_network()
    before = copy.deepcopy(victim.state_dict())
    after = defend(victim, epochs=0, teacher_epochs=2).model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_attention_loss_brings_the_maps_together():
    def apart(beta):
        hooks = distilled(tiny_network(0), tiny_network(1), beta, epochs=4, learning_rate=0.01)
        return hooks.distances

    alone, together = apart(0.0), apart(10.0)
    assert all(together[name] < 0.5 * alone[name] for name in STAGES)


def test_the_backdoor_goes_and_accuracy_stays():
    victim, context = tiny_victim(), tiny_context("test")
    repaired = defend(
        copy.deepcopy(victim.model),
        victim.reserve,
        epochs=20,
        teacher_epochs=10,
        batch_size=16,
        learning_rate=0.02,
    ).model
    others = (victim.test.labels != victim.target).nonzero().flatten()
    predicted = context.predict(repaired, victim.triggered.subset(others)).argmax(dim=1)
    assert float((predicted == victim.target).float().mean()) < 0.3
    assert context.accuracy(repaired, victim.test) > 0.95


def test_each_batch_goes_through_the_students_batch_norm_once():
    model = tiny_network()
    defend(model, tiny_images(48), epochs=3, batch_size=16)
    assert int(model.network.bn1.num_batches_tracked) == 3 * 3
    assert int(model.network.bn2.num_batches_tracked) == 3 * 3


def test_distillation_leaves_the_teacher_as_it_was():
    teacher = tiny_network(1)
    before = copy.deepcopy(teacher.state_dict())
    hooks = distilled(tiny_network(0), teacher, 16.0, epochs=2, learning_rate=0.1)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(hooks.distances[name] > 0 for name in STAGES)


def test_a_teacher_equal_to_the_student_adds_nothing():
    student, data = tiny_network().eval(), tiny_images(8)
    batch = next(batches(data, 8))
    with find_structure(student, SHAPE).feature_maps(student) as maps:
        logits = student(batch.images)
        loss = distillation(maps, copy.deepcopy(student), 1000.0).loss(logits, batch, 0)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, batch.labels))


def test_teacher_and_student_have_rates_of_their_own(monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def spy(optimizer, *args, **kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    defend(
        tiny_network(),
        tiny_images(16),
        epochs=4,
        learning_rate=0.1,
        milestones=(0.5,),
        teacher_epochs=2,
        teacher_learning_rate=0.02,
        teacher_milestones=(0.5,),
    )
    assert rates == pytest.approx([0.02, 0.002, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        ((1.0, 2.0, 3.0), {STAGES[0]: 2.0, STAGES[1]: 3.0}),
        ((1.0, 2.0), {STAGES[0]: 1.0, STAGES[1]: 2.0}),
        ((5.0,), {STAGES[1]: 5.0}),
    ],
)
def test_weights_belong_to_the_last_stages(beta, expected):
    found = find_structure(tiny_network(), SHAPE)
    assert compared_layers(found, NADConfig(beta=beta)) == expected


def test_the_record_names_the_layers_and_their_maps():
    details = defend(tiny_network()).details
    assert [(s["layer"], s["map"], s["beta"]) for s in details["stages"]] == [
        (STAGES[0], [16, 16], 4.0),
        (STAGES[1], [8, 8], 16.0),
    ]


class Pooled(nn.Module):
    """One feature map, then a pooling module to one pixel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 4)

    def forward(self, images):
        return self.head(self.pool(self.conv(images).relu()).flatten(1))


def test_a_pooled_map_is_never_chosen():
    assert compared_layers(find_structure(Pooled(), SHAPE), NADConfig()) == {"conv": 16.0}


@pytest.mark.parametrize(("layer", "came"), [("pool", "4 x 1 x 1"), ("head", "4")])
def test_a_named_layer_without_a_map_is_refused_before_training(layer, came):
    with pytest.raises(StructureError, match=f"'{layer}' gives {came};"):
        defend(Pooled(), layers=(layer,), beta=(1.0,))


def test_an_unknown_layer_is_refused():
    with pytest.raises(StructureError, match="no layer 'nothing'"):
        defend(tiny_network(), layers=("nothing",), beta=(1.0,))


def test_a_model_of_single_pixels_is_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 16)
            self.head = nn.Linear(4, 4)

        def forward(self, images):
            return self.head(self.conv(images).flatten(1))

    with pytest.raises(StructureError, match="nad needs 1 stages"):
        NAD(NADConfig()).check(find_structure(Flat(), SHAPE))


class Transformer(nn.Module):
    """Patches and a class token through two blocks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2))
        )
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1)
        return self.head(self.blocks(tokens)[:, 0])


def test_tokens_are_compared_as_a_map_of_patches():
    torch.manual_seed(0)
    stages = defend(Transformer(), learning_rate=0.01).details["stages"]
    assert [(s["layer"], s["map"]) for s in stages] == [
        ("blocks.0", [4, 4]),
        ("blocks.1", [4, 4]),
    ]
    assert all(stage["last_distance"] > 0 for stage in stages)


def test_cutout_blanks_a_square_and_nothing_else():
    images = torch.ones(300, 2, 9, 9)
    cut = cut_out(images, 3, torch.Generator().manual_seed(0))
    assert bool((images == 1).all())
    assert torch.equal(cut[:, 0], cut[:, 1])
    blank = (cut[:, 0] == 0).float()
    sizes = blank.flatten(1).sum(dim=1)
    assert set(sizes.tolist()) == {9.0, 6.0, 4.0}  # whole, on an edge, in a corner
    rows, columns = blank.amax(dim=2).sum(dim=1), blank.amax(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, sizes)
    assert float((sizes == 9).float().mean()) == pytest.approx(49 / 81, abs=0.1)


def test_a_square_of_two_is_what_the_released_code_blanks():
    cut = cut_out(torch.ones(100, 1, 32, 32), 2, torch.Generator().manual_seed(0))
    assert int((cut == 0).flatten(1).sum(dim=1).max()) == 4


def test_an_empty_reserve_is_refused():
    empty = ImageSet.from_tensors(
        torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), num_classes=4
    )
    with pytest.raises(InputError, match="empty"):
        defend(tiny_network(), empty)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": ()}, "at least one"),
        ({"layers": ("a", "b")}, "each of the 2 layers"),
        ({"layers": ("a", "a"), "beta": (1.0, 1.0)}, "different"),
    ],
)
def test_weights_that_do_not_fit_the_layers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NADConfig(**options)


def test_presets_are_valid_configurations():
    [info] = backdoorkit_defenses()
    presets = {name: structure(info.config, values) for name, values in info.presets.items()}
    assert set(presets) == {"paper", "official", "backdoorbench"}
    assert (presets["official"].epochs, presets["paper"].epochs) == (20, 10)
    assert presets["backdoorbench"].beta == (500.0, 1000.0)
    # On a WRN-16-1 the default weights are those of the released code: beta over the map's size.
    sizes = (32 * 32, 16 * 16, 8 * 8)
    official = [b / size for b, size in zip(presets["official"].beta, sizes, strict=True)]
    assert NADConfig().beta == pytest.approx(official, rel=0.03)
