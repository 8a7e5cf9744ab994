"""Whatever a configuration says: it is one, or one line says what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial

import jax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments import command_line, train
from experiments.command_line import BAD_INPUT, InputError
from experiments.presets import configs
from experiments.presets.configs import TrainConfig, presets
from experiments.presets.optimizers import OPTIMIZERS
from experiments.presets.serialization import decode, encode, flatten
from experiments.run.memory import check_training

SOME = ("quickstart", "quadratic", "transformer", "resnet", "mulo_s", "tfds_vae")
STORED = {name: encode(presets()[name][1]()) for name in SOME}


def accept(make):
    """An accepted configuration can be built, stored and read; others are one line."""
    try:
        with command_line.reported():
            config = make()
            config.build()
    except InputError as error:
        assert str(error).strip()
        return None
    stored = json.loads(json.dumps(encode(config), allow_nan=False))
    assert decode(TrainConfig, stored) == config
    assert hash(decode(TrainConfig, stored)) == hash(config)
    return config


ODD_WORDS = [
    *("", "nan", "inf", "-inf", "1e999", "1e308", "1e-320", "-0.0", "None", "True"),
    *("../x", "a\0b", "[]", "{}", "--seed", "ADAM_LIKE", "9" * 30, "1_0", "é\n"),
]
WORDS = st.one_of(
    st.sampled_from(ODD_WORDS),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
    st.text(max_size=4),
)


@st.composite
def commands(draw):
    """A preset and some fields, most of them known, with anything behind them."""
    preset = draw(st.sampled_from(SOME))
    fields = st.sampled_from([*flatten(STORED[preset]), "nonsense", "task.nonsense"])
    words = [preset]
    for _ in range(draw(st.integers(1, 2))):
        words.append("--" + draw(fields).replace("_", "-"))
        words += draw(st.lists(WORDS, max_size=2))
    return words


def parse(words):
    return command_line.choose_preset(presets(), "train", words)[1]


@settings(max_examples=15)
@given(commands())
@example(["quickstart", "--task.model.widths", *["1"] * 30])
@example(["resnet", "--task.model.blocks", "4294967296"])
@example(["quickstart", "--run.directory", "a\0b"])
def test_a_command_line_is_a_configuration_or_one_line(words):
    accept(partial(parse, words))


@pytest.mark.slow
@settings(max_examples=100)
@given(commands())
def test_many_command_lines(words):
    accept(partial(parse, words))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["inf", "MLP", "Digits", "../x", "a\0b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "x", "name"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(data, above=()):
    """Paths of everything inside nested JSON."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for name, value in items:
        yield (*above, name)
        if isinstance(value, dict | list):
            yield from places(value, (*above, name))


def changed(data, place, value, *, remove=False):
    """A copy in which one place holds something else, or nothing."""
    data = json.loads(json.dumps(data))
    inside = data
    for name in place[:-1]:
        inside = inside[name]
    if remove:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return data


@st.composite
def stored_configurations(draw):
    """A stored configuration with something else at one place, or with one less."""
    data = STORED[draw(st.sampled_from(SOME))]
    place = draw(st.sampled_from(list(places(data))))
    return changed(data, place, draw(JSON), remove=draw(st.integers(0, 9)) == 0)


@settings(max_examples=150)
@given(stored_configurations())
def test_a_stored_configuration_is_one_or_one_line(data):
    accept(lambda: decode(TrainConfig, data))


ODD = {
    int: (0, -1, 2**31 - 1, 10**30, math.nan),
    float: (0.0, -1.0, 1e308, "inf", math.nan, 10**400),
    str: ("", "a\0b"),
    type(None): (-1, 10**30, math.nan, "x"),
}


def fields_of_all():
    """Each field of each component once: its place in a stored configuration."""
    made = [make() for _, make in presets().values()]
    made += [
        dataclasses.replace(configs.QUICKSTART, lopt=named.make())
        for named in OPTIMIZERS.values()
    ]
    seen = set()
    for data in map(encode, made):
        for place in places(data):
            inside = data
            kind = "config"
            for name in place[:-1]:
                inside = inside[name]
                if isinstance(inside, dict):
                    kind = inside.get("kind", name)
            field = next(n for n in reversed(place) if isinstance(n, str))
            value = inside[place[-1]]
            if field != "kind" and (kind, field, type(value)) not in seen:
                seen.add((kind, field, type(value)))
                yield data, place, ODD.get(type(value), ())


@pytest.mark.slow
def test_odd_values_of_every_field_of_every_component():
    cases = 0
    for data, place, values in fields_of_all():
        for value in values:
            cases += 1
            odd = changed(data, place, value)
            config = accept(partial(decode, TrainConfig, odd))
            if config is None:
                continue
            try:
                training = config.build()
                state = jax.eval_shape(training.init)
                check_training(config, training, state)
            except (InputError, MemoryError):
                pass
    assert cases > 1000


def exit_of(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        command_line.run(train.main)
    out, error = capsys.readouterr()
    assert "compiling" not in out
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return stop.value.code, error


def test_names_lead_nowhere_else(monkeypatch, capsys, tmp_path):
    """Names of presets, datasets, optimizers and suites are no paths."""
    monkeypatch.setenv(command_line.DATA_DIR, "")  # --data-dir is to last this test
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    tfds = ["tfds_images", "--data-dir", tmp_path / "data", "--run.directory", "run"]
    for name in ("../../x", "/etc/x", "a/../../x", "..", "", "x\n"):
        for arguments in (
            [name],
            [*tfds, "--task.data.name", name],
            ["quickstart", "--lopt", name],
            ["quickstart", "--run.directory", "run", "--validation.suite", name],
        ):
            code, _ = exit_of(monkeypatch, capsys, *arguments)
            assert code == BAD_INPUT
    for directory in ("a\0b", "x" * 300, "data/../\0"):
        given_ = ["quickstart", "--run.directory", directory]
        assert exit_of(monkeypatch, capsys, *given_)[0] == BAD_INPUT
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
    assert not list((tmp_path / "data").iterdir())


def test_a_state_larger_than_the_memory_is_refused_before_the_start(
    monkeypatch, capsys, tmp_path
):
    given_ = ["quickstart", "--task.model.widths", "2000000000"]
    directory = ["--run.directory", tmp_path / "run"]
    code, error = exit_of(monkeypatch, capsys, *given_, *directory)
    assert code == BAD_INPUT
    assert "the state of this run needs at least " in error and "smaller" in error
