"""Suites: what a ladder varies, what the papers list, and that nothing is read."""

import dataclasses

import pytest

from parametrization import ADAM_LIKE
from tasks import (
    MLP,
    Autoencoding,
    Digits,
    ImageClassification,
    LanguageModelling,
    TFDSImages,
)
from tasks.data.resized import Resized
from tasks.modelled import ModelTask
from tasks.suites import (
    AXES,
    CELO17,
    LADDER_CPU,
    LADDER_GPU,
    LADDER_PAPER,
    MULO_PAPER,
    MULO_PAPER_LONG,
    QUICKSTART,
    SUITES,
    Cell,
    Suite,
)
from tasks.suites import mulo as paper

LADDERS = (LADDER_CPU, LADDER_GPU, LADDER_PAPER)


@pytest.fixture(autouse=True)
def values(monkeypatch):
    """Suites are values: no cell needs a disk to be made, and none is traced here."""
    monkeypatch.setenv("METATRAIN_DATA_DIR", "/nowhere")
    monkeypatch.setattr(ModelTask, "check_roles", lambda task: None)


def source(data):
    """The data itself, whatever its resolution."""
    if isinstance(data, Resized):
        return data.data
    if isinstance(data, TFDSImages):
        name = data.name.partition("/")[0]  # imagenet_resized/32x32
        return dataclasses.replace(data, name=name, size=None)
    return data


def differences(trained, cell):
    """The axes on which a cell differs from the trained one."""
    first, task = trained.task, cell.task
    found = set()
    if cell.num_steps != trained.num_steps:
        found.add("horizon")
    same_kind = type(task) is type(first) and type(task.model) is type(first.model)
    if not same_kind:
        found.add("family")
    elif task.model != first.model:
        wide = task.model.at_width(first.width) == first.model
        deep = task.model.at_depth(first.depth) == first.model
        found |= {"width"} if wide else {"depth"} if deep else {"model"}
    if getattr(task, "data", None) != first.data:
        same = source(getattr(task, "data", None)) == source(first.data)
        found.add("resolution" if same else "dataset")
    if task.batch_size != first.batch_size:
        found.add("batch")
    if same_kind:
        rest = dataclasses.replace(task, model=first.model, data=first.data)
        rest = dataclasses.replace(rest, batch_size=first.batch_size)
        assert rest == first, "something else differs"
    return found


@pytest.mark.parametrize("ladder", [QUICKSTART, *LADDERS], ids=lambda s: s.name)
def test_each_cell_differs_from_the_trained_one_in_its_axis_alone(ladder):
    for cell in ladder.cells:
        if cell.axis == "held_out":
            assert len(differences(ladder.trained, cell)) > 1, cell.name
            continue
        expected = set() if cell.axis == "trained" else {cell.axis}
        assert differences(ladder.trained, cell) == expected, cell.name
        assert cell.task.model.rules is ADAM_LIKE


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda s: s.name)
def test_a_ladder_has_all_axes(ladder):
    assert {cell.axis for cell in ladder.cells} == set(AXES)
    for cell in ladder.cells:
        number = cell.name.rpartition(" ")[2]
        match cell.axis:
            case "width":
                assert cell.task.width == int(number)
            case "depth":
                assert cell.task.depth == int(number)
            case "horizon":
                assert cell.num_steps == int(number)


def test_most_of_the_cpu_ladder_needs_no_prepared_data():
    needs = [
        cell.name
        for cell in LADDER_CPU.cells
        if getattr(getattr(cell.task, "data", None), "on_disk", False)
    ]
    assert needs == ["dataset mnist", "dataset cifar10_subset"]
    assert LADDER_CPU.trained == QUICKSTART.trained


def test_the_quickstart_is_as_it_was():
    shapes = [(c.name, c.axis, c.task.model, c.num_steps) for c in QUICKSTART.cells]
    assert shapes == [
        ("trained", "trained", MLP((32, 32), base_width=32), 400),
        ("width 128", "width", MLP((128, 128), base_width=32), 400),
        ("width 512", "width", MLP((512, 512), base_width=32), 400),
        ("depth 4", "depth", MLP((32,) * 4, base_width=32), 400),
        ("horizon 2000", "horizon", MLP((32, 32), base_width=32), 2000),
    ]
    for cell in QUICKSTART.cells:
        assert cell.task == ImageClassification(cell.task.model, Digits(), 128)
        assert not cell.note
    assert not QUICKSTART.aggregate


def test_the_35_tasks_of_the_mulo_paper():
    cells = {cell.name: cell for cell in MULO_PAPER.cells}
    assert len(cells) == 35
    assert {cell.num_steps for cell in cells.values()} == {1000}
    found = [
        (
            type(c.task.model).__name__,
            c.task.data.name.rpartition("/")[2],
            c.task.width,
            c.task.depth,
            c.task.batch_size,
        )
        for c in cells.values()
    ]
    widths, blocks = [128 * 2**k for k in range(7)], [192, 384, 768, 1024, 2048, 3072]
    assert set(found) == {
        *(("MLP", "32x32", w, 3, 4096) for w in widths),
        *(("MLP", "cifar10", w, 3, 4096) for w in widths),
        *(("MLP", "64x64", w, 3, 4096) for w in widths[:-1]),
        *(("ViT", "32x32", w, 3, 1024) for w in blocks),
        *(("Transformer", "lm1b", w, 3, 128) for w in blocks),
        ("MLP", "32x32", 1024, 16, 128),
        ("ViT", "32x32", 1024, 16, 128),
        ("Transformer", "lm1b", 1024, 16, 128),
    }
    heads = dict(zip(blocks, (3, 6, 8, 8, 16, 16), strict=True))
    for cell in cells.values():
        model = cell.task.model
        assert model.base_width == 1
        if not isinstance(model, MLP):
            assert model.width // model.head_dim == heads[model.width]
    text = cells["LM1B w192"].task
    assert (text.length, text.num_outputs) == (64, 32_000)
    assert MULO_PAPER.trained.name == "IN32 MLP w128"


def test_the_mulo_setting_has_the_absolute_rule_of_the_paper():
    # Base width 1: a hidden step is multiplied by 1/fan-in, the logits by 1/fan-in,
    # and attention's by 1/size of a head.
    task = paper.language_model(384)
    specs = task.specs()["residual"]["block_0"]
    for branch, layer, fan_in in (
        ("attention", "query", 384),
        ("attention", "out", 384),
        ("mlp", "up", 384),
        ("mlp", "down", 4 * 384),
    ):
        spec = specs[branch][layer]["kernel"]
        base = 4 if layer == "down" else 1
        assert spec.fan_in_mult == fan_in / base
    assert ADAM_LIKE.step_scale(specs["mlp"]["up"]["kernel"]) == 1 / 384
    model = task.model
    assert ADAM_LIKE.attention_scale(model.head_dim, model.base_head_dim) == 1 / 64


def test_the_long_suite_is_width_1024_at_two_horizons():
    long = [c for c in MULO_PAPER_LONG.cells if c.axis != "trained"]
    assert [c.num_steps for c in long] == [5000, 25_000] * 5
    assert {c.task.width for c in long} == {1024}
    assert MULO_PAPER_LONG.trained.task == MULO_PAPER.trained.task
    tasks = {c.task for c in MULO_PAPER.cells}
    assert all(c.task in tasks for c in long)


def test_the_17_tasks_of_the_celo_paper():
    cells = {cell.name: cell for cell in CELO17.cells}
    assert len(cells) == 17 and CELO17.aggregate and CELO17.trained is None
    assert {cell.axis for cell in cells.values()} == {"held_out"}
    kinds = [type(cell.task) for cell in cells.values()]
    assert kinds.count(ImageClassification) == 9
    assert kinds.count(LanguageModelling) == 5
    assert kinds.count(Autoencoding) == 2
    wide = cells["VIT_Cifar100_wideshallow"].task.model
    assert (wide.width, wide.head_dim, wide.depth, wide.mlp_ratio * wide.width) == (
        384,
        64,
        6,
        1536,
    )
    small = cells["TransformerLM_LM1B_MultiRuntime_0"].task
    assert (small.width, small.model.head_dim, small.batch_size, small.length) == (
        20,
        4,
        4,
        8,
    )
    # What has no exact twin says so.
    twins = {name for name, cell in cells.items() if not cell.note}
    assert twins == {
        "ImageMLP_FashionMnist_Relu128x128",
        "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu",
        "ImageMLP_Cifar10_128x128x128_Tanh_bs128",
        "Conv_Cifar10_32x64x64",
        "Conv_Cifar100_32x64x64",
        "VIT_Cifar100_wideshallow",
        "VIT_Cifar100_skinnydeep",
    }
    # At its own base width μP changes nothing, until an optimizer brings another.
    for cell in cells.values():
        if isinstance(cell.task, ModelTask):
            assert cell.task.model.base_width == cell.task.model.width


@pytest.mark.parametrize("field", ["axis", "num_steps"])
def test_nonsense_is_refused(field):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(QUICKSTART.cells[0], **{field: 0})


@pytest.mark.parametrize(
    "name", ["", " ", "a\nb", "a\x00b", "a\u202eb", "\x1b[31mred", "a\ud800b"]
)
@pytest.mark.parametrize("named", [QUICKSTART, QUICKSTART.cells[0]])
def test_names_that_cannot_be_printed_are_refused(named, name):
    with pytest.raises(ValueError, match=r"^name = ") as caught:
        dataclasses.replace(named, name=name)
    text = str(caught.value)
    assert text.isascii() and text.isprintable() and repr(name)[1:-1] in text


def test_a_suite_has_one_trained_cell_and_one_cell_of_a_name():
    trained, wide, *_ = QUICKSTART.cells
    second = dataclasses.replace(wide, axis="trained")
    with pytest.raises(ValueError, match="2 trained cells"):
        _ = Suite("x", "", lambda: (trained, second)).cells
    with pytest.raises(ValueError, match="two cells of the name 'trained'"):
        _ = Suite("x", "", lambda: (trained, trained)).cells
    assert Suite("x", "", lambda: (wide,)).trained is None


def test_cells_are_made_when_they_are_asked_for_and_once():
    made = []

    def make():
        made.append(1)
        return (Cell("a", "trained", ImageClassification(), 1),)

    suite = Suite("lazy", "", make)
    assert not made
    assert suite.cells is suite.cells
    assert made == [1]
    assert {name: suite.name for name, suite in SUITES.items()} == {
        name: name for name in SUITES
    }
