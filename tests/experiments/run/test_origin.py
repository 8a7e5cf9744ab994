"""A run goes on only with the data, versions and settings that began it."""

import dataclasses
import hashlib
import json
import shutil

import jax
import pytest

from configuration import identity
from configuration.fields import configuration
from configuration.identity import UnidentifiedError
from experiments import export
from experiments.command_line import InputError
from experiments.run import origin
from experiments.train import train
from lopt.release.artifact import Artifact
from tasks import MLP, Digits, ImageClassification
from tasks.data.images import Images
from tests.experiments.tiny_run import options, same_run

A, B = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Four of ten steps, with data of content A."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origin, "data_identity", lambda task: {"content": A})
        train(options(path, stop_after=4), "tiny")
    return path


@pytest.fixture
def copy(stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "data_identity", lambda task: {"content": A})
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def upgraded(monkeypatch):
    """The next version of JAX."""
    real = identity.version
    monkeypatch.setattr(
        identity, "version", lambda name: "99" if name == "jax" else real(name)
    )


def goes_on(path, *despite):
    train(options(path, despite=despite), "tiny")
    return Artifact.load(path / "artifact").provenance


def test_other_data_is_refused_and_never_meant(copy, monkeypatch):
    monkeypatch.setattr(origin, "data_identity", lambda task: {"content": B})
    with pytest.raises(InputError) as error:
        goes_on(copy)
    (line,) = str(error.value).splitlines()
    assert "step_00000004 was made with other data (" in line
    assert "content: aaaaaaaaaaaa… → bbbbbbbbbbbb…" in line and "despite" not in line
    with pytest.raises(ValueError, match=r"despite = 'data\.task' must begin with"):
        options(copy, despite=("data.task",))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_default_matmul_precision", "bfloat16"),
    ],
)
def test_another_setting_is_refused(setting, value, copy):
    was = jax.config.values[setting]
    try:
        jax.config.update(setting, value)
        with pytest.raises(InputError, match=setting.removeprefix("jax_")):
            goes_on(copy)
    finally:
        jax.config.update(setting, was)


def test_fast_mathematics_is_refused(copy, monkeypatch):
    fast = {**identity.environment(), "xla_flags": {"--fast_math": "true"}}
    monkeypatch.setattr(identity, "environment", lambda: fast)
    with pytest.raises(InputError, match=r"settings\.xla_flags.--fast_math: absent → "):
        goes_on(copy)


def test_an_upgrade_can_be_meant_and_is_told(copy, upgraded):
    with pytest.raises(InputError) as error:
        goes_on(copy)
    old = jax.__version__
    assert f"versions.jax: {old} → 99" in str(error.value)
    assert "go on with --run.despite versions.jax" in str(error.value)
    with pytest.raises(InputError, match=r"versions\.jax"):
        goes_on(copy, "versions.jaxlib")
    provenance = goes_on(copy, "versions.jax")
    change = {"step": 4, "differences": {"versions.jax": f"{old} → 99"}}
    assert provenance["continued"] == [change]
    assert provenance["identity"]["versions"]["jax"] == "99"
    # What is exported says it as well, and a later start needs the flag no more.
    with pytest.MonkeyPatch.context() as patch:
        words = ["export", str(copy), str(copy / "exported")]
        patch.setattr("sys.argv", words)
        export.main()
    assert Artifact.load(copy / "exported").provenance == provenance
    assert goes_on(copy) == provenance


def test_with_all_the_same_the_bits_are_the_same(copy, tmp_path):
    train(options(tmp_path / "straight"), "tiny")
    provenance = goes_on(copy)
    assert same_run(copy, tmp_path / "straight")
    assert "continued" not in provenance
    found = provenance["identity"]
    assert found["data"] == {"task": {"content": A}} and found["code"] == {}
    assert found["settings"]["backend"] == "cpu"


def test_data_without_identity_is_trained_on_but_not_continued(
    tmp_path, monkeypatch, capsys
):
    def unknown(task):
        raise UnidentifiedError("loss is of no module")

    monkeypatch.setattr(origin, "data_identity", unknown)
    path = tmp_path / "run"
    train(options(path, stop_after=4), "tiny")
    error = capsys.readouterr().err
    assert error.count("cannot be continued") == 1 and "loss is of no module" in error
    with pytest.raises(InputError, match="cannot be identified: loss is of no module"):
        train(options(path), "tiny")


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_warning(copy, capsys):
    for path in copy.glob("checkpoints/*/origin.json"):
        content = json.loads(path.read_text())
        del content["about"]
        path.write_text(json.dumps(content))
        sums = path.with_name("SHA256SUMS")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = [
            f"{digest}  origin.json" if line.endswith("  origin.json") else line
            for line in sums.read_text().splitlines()
        ]
        sums.write_text("\n".join(lines) + "\n")
    provenance = goes_on(copy)
    assert "does not say its data, versions and settings" in capsys.readouterr().err
    assert provenance["continued"][0]["step"] == 4


@configuration
class Mine(Images):
    """Own images, of a class that nothing knows by name."""

    image_shape = (8, 8, 1)
    num_classes = 10

    def load(self):
        return Digits().load()


def test_what_could_not_be_read_back_is_refused_at_once(tmp_path):
    task = ImageClassification(MLP((4,), base_width=4), Mine())
    with pytest.raises((ValueError, InputError), match=r"Mine.*regist"):
        train(dataclasses.replace(options(tmp_path / "run"), task=task), "tiny")


def test_data_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    contents = iter((A, B))
    monkeypatch.setattr(
        origin, "data_identity", lambda task: {"content": next(contents)}
    )
    with pytest.raises(InputError, match="the data changed while it was read"):
        train(options(tmp_path / "run"), "tiny")
