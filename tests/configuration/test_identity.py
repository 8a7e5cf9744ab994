"""An identity changes with all that a result depends on, and with nothing else."""

import copy
import dataclasses
import enum
import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from configuration import identity, modules
from configuration.identity import UnidentifiedError
from experiments.presets.configs import presets
from lopt.release import registry as optimizers
from tasks import FunctionTask, registry
from tasks.source import Source
from tasks.suites import SUITES

ROOT = Path(__file__).parents[2]


def objects(value, found):
    """Collects one object of every dataclass inside a value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found.setdefault(type(value), value)
        for field in dataclasses.fields(value):
            objects(getattr(value, field.name), found)
    elif isinstance(value, tuple | list):
        for item in value:
            objects(item, found)
    return found


def changed(value):
    """Another value, of whatever type."""
    match value:
        case bool():
            return not value
        case enum.Enum():
            return next(x for x in type(value) if x is not value)
        case int():
            return value + 1
        case float():
            return 1.0 if value != 1.0 else 2.0
        case str():
            return value + "x"
        case tuple():
            return (*value, 1)
        case None:
            return 1
        case Path():
            return value / "x"
    return None


@pytest.fixture
def known(monkeypatch):
    """One object of each class of configurations; their data is not read."""
    monkeypatch.setattr(Source, "content", lambda self: "its content")
    for kind in registry.SOURCES:
        if "content" in vars(kind):
            monkeypatch.setattr(kind, "content", lambda self: "its content")
    found = {}
    for _, make in presets().values():
        objects(make(), found)
    for family in registry.FAMILIES.values():
        objects(family.task(), found)
    objects(SUITES["ladder_cpu"].cells, found)
    for kind in (*optimizers.KINDS.values(), *registry.SOURCES):
        if kind not in found and all(
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
            for field in dataclasses.fields(kind)
        ):
            objects(kind(), found)
    return found


def test_every_field_of_every_configuration_counts(known):
    assert len(known) > 70
    for kind, value in known.items():
        before = identity.of(value)
        for field in dataclasses.fields(kind):
            other = copy.copy(value)
            was = getattr(value, field.name)
            object.__setattr__(other, field.name, changed(was))
            assert identity.of(other) != before, (kind, field.name, was)
            object.__setattr__(other, field.name, was)
            assert identity.of(other) == before


def test_classes_of_equal_fields_differ(known):
    digests = {identity.digest(identity.of(value)) for value in known.values()}
    assert len(digests) == len(known)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 1),
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_disable_most_optimizations", "another"),
    ],
)
def test_settings_of_jax_count(name, value):
    before, was = identity.surroundings(), jax.config.values[name]
    wanted = not was if value == "another" else value
    try:
        jax.config.update(name, wanted)
        after = identity.surroundings()
    finally:
        jax.config.update(name, was)
    found = identity.differences(before, after)
    assert list(found) == [f"settings.{name.removeprefix('jax_')}"]
    assert identity.surroundings() == before


def test_flags_and_variables_count_unless_they_are_harmless(monkeypatch, tmp_path):
    def now(flags):
        monkeypatch.setenv("XLA_FLAGS", flags)
        identity.environment.cache_clear()
        return identity.surroundings()

    plain = now("")
    fast = now("--xla_cpu_enable_fast_math=true")
    assert list(identity.differences(plain, fast)) == [
        "settings.xla_flags.--xla_cpu_enable_fast_math"
    ]
    assert now("--xla_gpu_something_new=1") != plain
    assert now("--xla_force_host_platform_device_count=8 --xla_dump_to=/x") == plain
    assert now(" --a=1   --b=2") == now("--b=2 --a=1")
    # The last of several counts.
    assert now("--a=1 --a=2") == now("--a=2") != now("--a=2 --a=1")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert now("") != plain
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    # What is set later has no effect, and is not told.
    assert now("") == plain
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    assert identity.surroundings() == plain
    # Flags may stand in a file.
    (tmp_path / "flags").write_text("--a=1 --b=2")
    assert now(str(tmp_path / "flags")) == now("--a=1 --b=2")
    monkeypatch.undo()
    identity.environment.cache_clear()


def test_versions_count(monkeypatch):
    before = identity.surroundings()
    assert before["versions"]["jax"] == jax.__version__
    for name in ("metatrain", "jax", "jaxlib", "optax", "flax", "numpy"):
        with monkeypatch.context() as patched:
            real = identity.version
            patched.setattr(
                identity, "version", lambda x, n=name, r=real: "9" if x == n else r(x)
            )
            found = identity.differences(before, identity.surroundings())
        assert list(found) == [f"versions.{name}"]
        assert found[f"versions.{name}"].endswith(" → 9")


SCRIPT = """
import sys; sys.path.insert(0, {root!r})
from configuration import identity, modules
from tasks.suites import SUITES
cells = identity.of(SUITES["quickstart"].cells)
print(identity.digest([cells, identity.of({{"b", "a", 3}}), identity.surroundings()]))
"""


def test_nothing_else_counts(tmp_path):
    def digest(folder, **variables):
        return subprocess.run(
            [sys.executable, "-c", SCRIPT.format(root=str(ROOT))],
            env=os.environ | variables,
            cwd=folder,
            capture_output=True,
            check=True,
            text=True,
        ).stdout

    devices = " --xla_force_host_platform_device_count=3"
    assert digest(ROOT, PYTHONHASHSEED="1") == digest(
        tmp_path,
        PYTHONHASHSEED="2",
        LC_ALL="POSIX",
        HOME=str(tmp_path),
        METATRAIN_CACHE_DIR=str(tmp_path / "elsewhere"),
        XLA_FLAGS=os.environ.get("XLA_FLAGS", "") + devices,
    )


def test_arrays_are_content_dtype_shape_and_place():
    data = {"a": np.arange(6, dtype=np.int32), "b": np.ones(2)}
    digests = {
        identity.of_arrays(data),
        identity.of_arrays({**data, "a": data["a"][::-1]}),
        identity.of_arrays({**data, "a": data["a"].reshape(2, 3)}),
        identity.of_arrays({**data, "b": np.ones(2, np.float32)}),
        identity.of_arrays({"b": data["a"], "a": data["b"]}),
        identity.of_arrays({"c": data["a"], "b": data["b"]}),
    }
    assert len(digests) == 6
    same = {"b": jnp.ones(2, jnp.float32), "a": data["a"].copy()}
    assert identity.of_arrays(same) == identity.of_arrays(
        {**data, "b": np.ones(2, np.float32)}
    )
    with pytest.raises(UnidentifiedError, match=r"\['a'\] is a object, no array"):
        identity.of_arrays({"a": object()})


TABLE = np.arange(4.0)


def helper(x):
    return x @ TABLE


def make(scale, shift=0.0):
    def loss(params, key, batch):
        return jnp.mean((lambda x: helper(x) * scale)(batch)) + shift

    return loss


def test_a_function_is_its_code_and_what_it_refers_to(monkeypatch):
    before = identity.of(make(jnp.ones(3)))
    assert identity.of(make(jnp.ones(3))) == before
    assert identity.of(make(jnp.zeros(3))) != before
    assert identity.of(make(jnp.ones(3), 1.0)) != before
    assert identity.of(jax.jit(make(jnp.ones(3)))) == before
    # A global that only a function inside of it, and one that it calls, refer to.
    monkeypatch.setitem(globals(), "TABLE", TABLE + 1)
    assert identity.of(make(jnp.ones(3))) != before

    def partial(x):
        return functools.partial(make, x)

    assert identity.of(partial(1)) == identity.of(partial(1)) != identity.of(partial(2))
    assert identity.of(lambda x: x + 1) != identity.of(lambda x: x + 2)


def scaled(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*arguments):
            return factor * function(*arguments)

        return wrapper

    return decorate


def with_rule(factor):
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, g: (factor * x * g,))
    return square


def test_decorators_and_rules_of_differentiation_count():
    halves = [identity.of(scaled(x)(helper)) for x in (0.5, 0.5, 2.0)]
    assert halves[0] == halves[1] != halves[2] != identity.of(helper)
    rules = [identity.of(with_rule(x)) for x in (2.0, 2.0, 3.0)]
    assert rules[0] == rules[1] != rules[2]
    jitted = [identity.of(jax.jit(scaled(x)(helper))) for x in (0.5, 2.0)]
    assert jitted[0] == halves[0] and jitted[1] == halves[2]
    scales = [identity.of(optax.scale_by_schedule(lambda n, k=k: k)) for k in (1, 2)]
    assert scales[0] != scales[1]
    assert identity.of({1: 2, "1": 3}) != identity.of({1: 3, "1": 2})


class Base:
    factor = 2.0

    def scale(self, x):
        return x @ TABLE

    @property
    def twice(self):
        return helper(2.0)


@dataclasses.dataclass(frozen=True)
class Derived(Base):
    size: int = 1


def test_a_class_from_outside_is_its_bases_and_what_they_refer_to(monkeypatch):
    before = identity.of(Derived())
    assert identity.of(Derived()) == before != identity.of(Derived(2))
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "TABLE", TABLE + 1)
        assert identity.of(Derived()) != before
    with monkeypatch.context() as patch:
        patch.setattr(Base, "factor", 3.0)
        assert identity.of(Derived()) != before
    with monkeypatch.context() as patch:
        patch.setattr(Base, "scale", lambda self, x: x)
        assert identity.of(Derived()) != before
    assert identity.of(Derived()) == before


def test_modules_that_a_module_refers_to_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "far_away.py").write_text("def tripled(x):\n    return 3 * x\n")
    (tmp_path / "halfway.py").write_text("from far_away import tripled\n")
    (tmp_path / "nearby.py").write_text(
        "import halfway\n\n\ndef loss(x):\n    return halfway.tripled(x)\n"
    )
    nearby = importlib.import_module("nearby")
    before = identity.of(nearby.loss)
    assert set(before["its code"]["files"]) == {"nearby", "halfway", "far_away"}
    (tmp_path / "far_away.py").write_text("def tripled(x):\n    return 4 * x\n")
    changed = identity.differences(before, identity.of(nearby.loss))
    assert list(changed) and all(name.endswith("far_away") for name in changed)
    rest, code = identity.split(identity.of({"loss": nearby.loss, "size": 3}))
    assert rest == {"loss": {"function": "nearby.loss"}, "size": 3}
    assert list(code) == ["nearby.loss"]


@pytest.mark.parametrize(
    ("body", "change"),
    [
        ("return near.SCALE * x", "SCALE = 2"),
        ("return near.far.tripled(x)", "far.tripled = lambda x: x"),
        ("return near.Net().cost(x)", "Net.cost = lambda self, x: x"),
        ("from near import SCALE\n    return SCALE * x", "SCALE = 2"),
        (
            "import importlib\n    return importlib.import_module('near').SCALE",
            "SCALE = 2",
        ),
        ("return near.Kind.ONE.value * x", "Kind.ONE._value_ = 9"),
        ("return near.JITTED(x)", "JITTED = jax.jit(lambda x: x)"),
    ],
)
def test_what_modules_hold_at_run_time_counts(body, change, tmp_path, monkeypatch):
    """Their files stay as they are."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "far.py").write_text("def tripled(x):\n    return 3 * x\n")
    (tmp_path / "near.py").write_text(
        "import enum, jax, far\nSCALE = 1\nJITTED = jax.jit(far.tripled)\n"
        "class Net:\n    def cost(self, x):\n        return far.tripled(x)\n"
        "class Kind(enum.Enum):\n    ONE = 1\n"
    )
    (tmp_path / "mine.py").write_text(f"import near\ndef loss(x):\n    {body}\n")
    for name in ("mine", "near", "far"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    mine = importlib.import_module("mine")
    before = identity.of(mine.loss)
    assert identity.of(mine.loss) == before
    exec(change, vars(sys.modules["near"]))
    assert identity.of(mine.loss) != before


def test_a_module_of_ones_own_may_have_the_name_of_a_standard_one(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "colorsys.py").write_text("def loss(x):\n    return x\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    modules._place.cache_clear()
    mine = importlib.import_module("colorsys")
    assert "its code" in identity.of(mine.loss)
    monkeypatch.undo()
    sys.modules.pop("colorsys")
    modules._place.cache_clear()


def test_functions_that_read_and_values_that_contain_themselves_have_none():
    def reads(x):
        return x * float(os.environ["SCALE"])

    with pytest.raises(UnidentifiedError, match="reads uses environ, and may read"):
        identity.of(reads)
    endless = []
    endless.append(endless)
    with pytest.raises(UnidentifiedError, match="list contains itself"):
        identity.of(endless)


def test_an_attribute_is_no_global():
    def loss(batch):
        return batch.TABLE

    assert "TABLE" not in identity.of(loss)["its code"]["globals"]


def test_a_walk_meets_everything_once():
    functions = [lambda x: x]
    for _ in range(60):
        one, two = functions[-1], functions[-2:][0]
        functions.append(lambda x, one=one, two=two: one(x) + two(x))
    assert len(json.dumps(identity.of(functions[-1]))) < 200_000


def recursive(n):
    return n and recursive(n - 1)


def test_libraries_and_recursion_have_identities():
    rates = [identity.of(optax.adam(rate)) for rate in (1e-3, 1e-3, 1e-2)]
    assert rates[0] == rates[1] != rates[2]
    layers = [identity.of(linen.Dense(size)) for size in (3, 3, 4)]
    assert layers[0] == layers[1] != layers[2]
    assert identity.of(recursive) == identity.of(recursive)
    keys = [identity.of(jax.random.key(seed)) for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_what_has_no_source_has_no_identity():
    typed = {}
    exec("def loss(params, key, batch):\n    return (params ** 2).sum()", typed)
    with pytest.raises(UnidentifiedError, match="loss is of no module: give a version"):
        identity.of(typed["loss"])
    with pytest.raises(UnidentifiedError, match=r"a\.b: object has no fields"):
        identity.of({"a": {"b": object()}})


def loss(params, key, batch):
    return ((params - batch.mean()) ** 2).sum()


def init(key):
    return jnp.ones(3)


def test_a_task_of_functions_is_code_and_data_or_a_version():
    rows = np.arange(24.0).reshape(8, 3)
    task = FunctionTask(init, loss, rows, batch_size=2)
    other = dataclasses.replace(task, data=rows + 1)
    assert identity.of(task) == identity.of(FunctionTask(init, loss, rows, 2))
    assert identity.of(task) != identity.of(other)
    typed = {"jnp": jnp}
    exec("def loss(params, key, batch):\n    return (params ** 2).sum()", typed)
    prompt = dataclasses.replace(task, loss_fn=typed["loss"])
    with pytest.raises(UnidentifiedError, match="loss_fn"):
        identity.of(prompt)
    one, two = (dataclasses.replace(prompt, version=x) for x in ("1", "2"))
    assert identity.of(one) != identity.of(two)
    assert identity.of(one) != identity.of(dataclasses.replace(one, data=rows + 1))


def test_differences_are_named_in_one_line():
    one = {"data": {"digits": "0" * 64}, "versions": {"jax": "0.11.2"}, "gone": 1}
    two = {"data": {"digits": "f" * 64}, "versions": {"jax": "0.12.0"}, "new": None}
    found = identity.differences(one, two)
    assert found["data.digits"] == "000000000000… → ffffffffffff…"
    assert found["versions.jax"] == "0.11.2 → 0.12.0"
    assert found["gone"] == "1 → absent" and found["new"] == "absent → None"
    line = identity.described(found, most=2)
    assert line.startswith("data.digits: 0") and line.endswith("; and 2 more")
    assert identity.differences(one, copy.deepcopy(one)) == {}
