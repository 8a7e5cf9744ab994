"""Artifacts of any optimizer: small classes of the test's own, and a wrapper."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from configuration import encoding
from configuration import files as integrity
from lopt import WIDTH_SAFE, Artifact, Epsilons, SmallFC
from lopt.base import LearnedOptimizer
from lopt.release import registry
from parametrization import ADAM_LIKE, STANDARD, Rules


@dataclasses.dataclass(frozen=True)
class Toy:
    """A rule with a nested θ whose leaves have ranks 0 to 3."""

    units: int = 4
    floor: float | None = None
    rules: Rules = STANDARD

    def __post_init__(self):
        if self.units < 1:
            raise ValueError(f"units = {self.units} must be positive")

    def init(self, key):
        del key
        layer = {"kernel": jnp.ones([3, self.units]), "bias": jnp.zeros(self.units)}
        return {
            "log_rate": jnp.zeros([]),
            "net": {"layer_0": layer, "bank": jnp.zeros([2, 3, self.units])},
        }

    def as_optax(self, theta, specs, num_steps):
        return optax.sgd(jnp.exp(theta["log_rate"]))


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """Two optimizers and floors."""

    inner: LearnedOptimizer
    others: tuple[LearnedOptimizer, ...] = ()
    epsilons: Epsilons = WIDTH_SAFE

    @property
    def rules(self):
        return self.inner.rules

    def init(self, key):
        return {"inner": self.inner.init(key), "decay": jnp.zeros(2)}

    def as_optax(self, theta, specs, num_steps):
        return self.inner.as_optax(theta["inner"], specs, num_steps)


class Finer(SmallFC):
    """A class that the first schema cannot tell from its parent."""


CASES = {
    "toy": Toy(5, 1e-7, ADAM_LIKE),
    "wrapper": Wrapper(SmallFC(hidden_size=3), (Toy(), Toy(2)), Epsilons(row_col=1e-9)),
    "deep": Wrapper(Wrapper(Toy(1))),
    "subclass": Finer(hidden_size=2),
}


@pytest.fixture(autouse=True)
def own_kinds(monkeypatch):
    learned = (SmallFC, Toy, Wrapper, Finer)
    kinds = encoding.kinds_of(*learned, Epsilons)
    monkeypatch.setattr(registry, "LEARNED", learned)
    monkeypatch.setattr(registry, "KINDS", kinds)


def random(optimizer, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(optimizer.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), shapes)


@pytest.fixture
def saved(tmp_path):
    optimizer = CASES["wrapper"]
    artifact = Artifact(optimizer, random(optimizer), {"width": 8}, {"seed": [1]})
    artifact.save(tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_reads_back_bit_for_bit(name, tmp_path):
    optimizer = CASES[name]
    theta = random(optimizer)
    Artifact(optimizer, theta, {"width": 8}, {"of": name}).save(tmp_path / "a")
    again = Artifact.load(tmp_path / "a")
    assert again.optimizer == optimizer and type(again.optimizer) is type(optimizer)
    assert (again.base, again.provenance) == ({"width": 8}, {"of": name})
    assert jax.tree.structure(again.theta) == jax.tree.structure(theta)
    for x, y in zip(*map(jax.tree.leaves, (again.theta, theta)), strict=True):
        assert x.dtype == np.float32 and x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    again.save(tmp_path / "b")
    for file in ("config.json", "model.safetensors", "SHA256SUMS"):
        assert (tmp_path / "a" / file).read_bytes() == (
            tmp_path / "b" / file
        ).read_bytes()


def test_the_form_is_plain(saved):
    config = json.loads((saved / "config.json").read_text())
    assert set(config) == {"schema_version", "optimizer", "base", "provenance"}
    described = config["optimizer"]
    assert config["schema_version"] == 2 and described["kind"] == "Wrapper"
    assert described["inner"]["kind"] == "SmallFC"
    assert described["inner"]["rules"] == "STANDARD"
    assert [o["units"] for o in described["others"]] == [4, 2]
    names = set(load_file(saved / "model.safetensors"))
    assert {"decay", "inner/layer_0/kernel", "inner/factored_offsets"} < names


def test_an_artifact_of_the_first_schema_reads_and_writes_as_ever(golden, tmp_path):
    folder = golden("artifact_schema_1")
    artifact = Artifact.load(folder)
    assert artifact.optimizer == SmallFC(
        hidden_size=3,
        step_mult=0.03,
        exp_mult=0.002,
        momentum_decays=(0.5, 0.9),
        second_moment_decay=0.99,
        factored_decays=(0.8, 0.95),
        epsilons=WIDTH_SAFE,
        rules=ADAM_LIKE,
        factored_axes="tensor",
    )
    assert artifact.base == {"width": 32, "depth": 2}
    assert artifact.theta["layer_0"]["kernel"].shape == (31, 3)
    artifact.save(tmp_path / "again")
    for file in ("config.json", "model.safetensors", "SHA256SUMS"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    integrity.write_sums(folder)


CONFIGS = {
    "unknown kind": (lambda c: c["optimizer"].update(kind="Mystery"), "'Mystery'"),
    "no kind": (lambda c: c["optimizer"].pop("kind"), "object with a 'kind'"),
    "no optimizer": (lambda c: c["optimizer"].update(kind="Epsilons"), "not a field"),
    "unknown field": (
        lambda c: c["optimizer"]["inner"].update(colour=1),
        "optimizer.inner.colour is not a field of SmallFC",
    ),
    "missing field": (
        lambda c: c["optimizer"]["epsilons"].pop("factored"),
        "optimizer.epsilons.factored is missing",
    ),
    "wrong type": (
        lambda c: c["optimizer"]["others"][0].update(units=2.5),
        "optimizer.others[0].units = 2.5 must be a whole number",
    ),
    "its own check": (
        lambda c: c["optimizer"]["others"][1].update(units=-1),
        "units = -1 must be positive",
    ),
    "no learned optimizer": (
        lambda c: c["optimizer"].update(inner=c["optimizer"]["epsilons"]),
        "optimizer.inner = Epsilons(normalizer=1e-05, second_moment=1e-06, "
        "row_col=1e-09, factored=1e-09... must be of type LearnedOptimizer",
    ),
    "base": (lambda c: c.update(base=[1]), "base = [1] must be an object"),
    "no provenance": (lambda c: c.pop("provenance"), "provenance"),
    "not json": (lambda c: c["base"].update(width=float("inf")), "Infinity"),
    "newer": (lambda c: c.update(schema_version=4), "schema_version 4"),
    "third schema": (lambda c: c.update(schema_version=3), "'class'"),
    "other schema": (lambda c: c.update(schema_version=1), "'class'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_not_understood_is_refused(saved, case):
    change, needle = CONFIGS[case]
    edit(saved, change)
    with pytest.raises(ValueError) as info:
        Artifact.load(saved)
    message = str(info.value)
    assert str(saved / "config.json") in message and needle in message, message
    assert "\n" not in message


def test_an_optimizer_in_place_of_floors_is_refused(saved):
    edit(saved, lambda c: c["optimizer"].update(epsilons={"kind": "Toy"} | TOY))
    with pytest.raises(ValueError, match=r"epsilons = Toy.* must be of type Epsilons"):
        Artifact.load(saved)


TOY = {"units": 1, "floor": None, "rules": "STANDARD"}

WEIGHTS = {
    "renamed": lambda t: t.update({"inner/decay": t.pop("decay")}),
    "transposed": lambda t: t.update(
        {"inner/layer_1/kernel": np.zeros([2, 3], np.float32)}
    ),
    "nan": lambda t: t["decay"].__setitem__(1, np.nan),
    "float64": lambda t: t.update({"decay": np.zeros(2)}),
    "extra": lambda t: t.update({"inner": np.zeros(2, np.float32)}),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_wrong_tensors_are_refused(saved, case):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    WEIGHTS[case](tensors)
    save_file(tensors, path)
    integrity.write_sums(saved)
    with pytest.raises(ValueError) as info:
        Artifact.load(saved)
    assert str(path) in str(info.value) and "\n" not in str(info.value)


def test_what_does_not_fit_is_not_written(tmp_path):
    toy, folder = Toy(), tmp_path / "artifact"
    for theta, message in (
        (random(Toy(5)), "does not belong"),
        (random(toy) | {"net": {}}, r"theta\['net'\]\['bank'\] is absent"),
        (random(toy) | {"more": jnp.zeros(1)}, r"theta\['more'\] .* must be absent"),
        (random(toy) | {"log_rate": jnp.float32(jnp.inf)}, "not finite in log_rate"),
    ):
        with pytest.raises(ValueError, match=message):
            Artifact(toy, theta).save(folder)
    stranger = dataclasses.make_dataclass("Stranger", [], bases=(Toy,), frozen=True)
    with pytest.raises(ValueError, match="Stranger is not in lopt"):
        Artifact(stranger(), random(toy)).save(folder)
    assert list(tmp_path.iterdir()) == []


def test_pytorch_refuses_what_it_cannot_run(saved, tmp_path):
    torch = pytest.importorskip("torch")
    from torch_lopt import LearnedOptimizer as TorchOptimizer

    folder = shutil.copytree(saved, tmp_path / "copy")
    params = [("p", torch.nn.Parameter(torch.ones(2)))]
    with pytest.raises(
        ValueError, match=r"optimizer\.kind is .* run it in JAX, by Artifact\.as_optax"
    ) as info:
        TorchOptimizer.from_pretrained(params, folder, base=None)
    assert str(folder) in str(info.value)
