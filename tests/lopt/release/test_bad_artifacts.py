"""What one reader of artifacts refuses, the one of the PyTorch adapter refuses too."""

from __future__ import annotations

import hashlib
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lopt.learned.small_fc import SmallFC
from lopt.release.artifact import Artifact
from lopt.schedules import InfiniteSchedule
from lopt.wrappers import ScheduledSteps, WeightDecay
from tests.special_files import SPECIAL, TOO_LARGE, put

FILES = ("config.json", "model.safetensors", "SHA256SUMS")


def load_in_torch(folder):
    return pytest.importorskip("torch_lopt").load_artifact(folder)


READERS = {"jax": Artifact.load, "torch": load_in_torch}


@pytest.fixture(params=READERS)
def reader(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    return READERS[request.param]


def sum_up(folder):
    """Renews SHA256SUMS, as an attacker or a broken exporter would."""
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in FILES[:2]
    ]
    (folder / FILES[2]).write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    optimizer = SmallFC(hidden_size=4)
    theta = optimizer.init(jax.random.key(0))
    artifact = Artifact(optimizer, theta, {"width": 32, "depth": 2})
    artifact.save(tmp_path / "artifact")
    return tmp_path / "artifact"


def refusal(reader, folder):
    with pytest.raises(ValueError) as error:
        reader(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", [*SPECIAL, *TOO_LARGE])
def test_what_is_no_file_of_a_sensible_size_is_never_read(reader, folder, name, kind):
    put(folder / name, kind)
    assert name in refusal(reader, folder)


def weights_of(loaded):
    """The arrays of an artifact of either library."""
    tree = loaded.theta if hasattr(loaded, "theta") else loaded.weights
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_links_to_files_are_read(reader, folder, tmp_path):
    before = weights_of(reader(folder))
    for name in FILES:
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    now = weights_of(reader(folder))
    assert len(now) == len(before) > 0
    assert all(map(np.array_equal, now, before))


LONG = 10**5
# Keys of config.json, below `optimizer` where they are there, and wrong values.
BAD_VALUES = [
    ("optimizer", []),
    ("provenance", None),
    ("provenance", []),
    ("schema_version", True),
    ("schema_version", 3.5),
    ("hidden_size", 0),
    ("hidden_size", 10**6 + 1),
    ("hidden_size", 4.0),
    ("hidden_layers", 10**7),
    ("hidden_layers", True),
    ("step_mult", 0),
    ("step_mult", 1e4),
    ("step_mult", 10**400),
    ("step_mult", "0.1"),
    ("exp_mult", 1e308),
    ("exp_mult", -1001),
    ("momentum_decays", []),
    ("momentum_decays", [0.9] * LONG),
    ("momentum_decays", [0.9, 0.99, 1.0]),
    ("momentum_decays", 0.9),
    ("rms_decays", [0.9, 0.99]),
    ("adafactor_decays", [0.9]),
    ("momentum_offsets", [1e39, 0.0, 0.0]),
    ("momentum_offsets", [[0.0], [0.0], [0.0]]),
    ("momentum_offsets", [True, 0.0, 0.0]),
    ("momentum_offsets", ["0", 0.0, 0.0]),
    ("momentum_offsets", [0.0] * 4),
    ("rms_offsets", [-1e39]),
    ("rms_offsets", 0.0),
    ("adafactor_offsets", [0.0, 0.0, 10**400]),
    ("epsilons", {}),
    ("time_scales", [1.0] * 11),
    ("features", ["gradient"]),
    ("rules", "COMPLETEP"),
    ("rules", "NONE"),
    ("factored_axes", "rows"),
    ("base", []),
    ("base", {"width": 0}),
    ("base", {"width": False}),
    ("base", {"width": True}),
    ("base", {"width": 1.5}),
    ("base", {"width": "32"}),
    ("base", {"width": -1}),
    ("base", {"width": None}),
]


@pytest.mark.parametrize(
    ("key", "value"), BAD_VALUES, ids=[f"{k}={v!r:.30}" for k, v in BAD_VALUES]
)
def test_a_value_out_of_its_range_is_refused(reader, folder, key, value):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    inner = config["optimizer"]
    if key in ("hidden_size", "hidden_layers"):
        # PyLO's own keys agree with it.
        config[key] = value - (key == "hidden_layers") if value else value
    if key == "momentum_decays" and isinstance(value, list) and len(value) == LONG:
        inner |= {"adafactor_decays": value, "momentum_offsets": [0.0] * LONG}
        inner["adafactor_offsets"] = [0.0] * LONG
    (inner if key in inner else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sum_up(folder)
    assert "config.json" in refusal(reader, folder)


@pytest.fixture
def general_folder(tmp_path):
    """A folder of the second schema, in which objects say their kind."""
    decayed = WeightDecay(SmallFC(hidden_size=4))
    optimizer = ScheduledSteps(decayed, schedule=InfiniteSchedule())
    artifact = Artifact(optimizer, optimizer.init(jax.random.key(0)), {"width": 32})
    artifact.save(tmp_path / "general")
    return tmp_path / "general"


MISSING = object()
RULE = "optimizer/inner/inner"
SCHEDULE = "optimizer/schedule"
BAD_GENERAL = [
    ("base", MISSING),
    ("base", {"width": 0}),
    ("provenance", []),
    ("optimizer", []),
    ("optimizer/kind", MISSING),
    ("optimizer/kind", "Unknown"),
    ("optimizer/kind", ["SmallFC"]),
    ("optimizer/other", 1.0),
    ("optimizer/inner", MISSING),
    ("optimizer/inner", None),
    ("optimizer/learning_rate", 0),
    ("optimizer/learning_rate", -1.0),
    ("optimizer/learning_rate", "1.0"),
    ("optimizer/learning_rate", True),
    ("optimizer/learning_rate", 1e39),
    ("optimizer/learning_rate", 10**400),
    ("optimizer/inner/weight_decay", -0.1),
    ("optimizer/inner/weight_decay", None),
    ("optimizer/inner/weight_decay", MISSING),
    ("optimizer/inner/kinds", []),
    ("optimizer/inner/kinds", "hidden"),
    ("optimizer/inner/kinds", ["matrix"]),
    (f"{RULE}/hidden_size", 4.0),
    (f"{RULE}/hidden_size", MISSING),
    (f"{RULE}/second_moment_decay", [0.999]),
    (f"{RULE}/second_moment_decay", 1.0),
    (f"{RULE}/factored_decays", [0.9]),
    (f"{RULE}/momentum_decays", [0.9] * LONG),
    (f"{RULE}/momentum_offsets", [0.0] * 3),
    (f"{RULE}/output_scale", "1"),
    (f"{RULE}/epsilons/row_col", 0),
    (f"{RULE}/epsilons/other", 0.1),
    (f"{RULE}/rules", "COMPLETEP"),
    (f"{RULE}/factored_axes", "rows"),
    (f"{RULE}/factored_axes", None),
    (f"{RULE}/execution", 3),
    (SCHEDULE, "linear"),
    (SCHEDULE, None),
    (SCHEDULE, []),
    (f"{SCHEDULE}/kind", MISSING),
    (f"{SCHEDULE}/kind", "Linear"),
    (f"{SCHEDULE}/kind", "WarmupCosine"),
    (f"{SCHEDULE}/warmup", -0.1),
    (f"{SCHEDULE}/warmup", 0.5),
    (f"{SCHEDULE}/warmup", "0.1"),
    (f"{SCHEDULE}/warmup", False),
    (f"{SCHEDULE}/final", 0),
    (f"{SCHEDULE}/final", 0.6),
    (f"{SCHEDULE}/initial", 1.5),
    (f"{SCHEDULE}/shape", "sqrt"),
    (f"{SCHEDULE}/shape", ["cosine"]),
    (f"{SCHEDULE}/unit", "epochs"),
    (f"{SCHEDULE}/unit", "steps"),
    (f"{SCHEDULE}/unit", MISSING),
]


@pytest.mark.parametrize(
    ("path", "value"), BAD_GENERAL, ids=[f"{k}={v!r:.20}" for k, v in BAD_GENERAL]
)
def test_a_wrong_value_of_the_general_schema_is_refused(
    reader, general_folder, path, value
):
    config = json.loads((general_folder / "config.json").read_text("utf-8"))
    *above, last = path.split("/")
    inner = config
    for key in above:
        inner = inner[key]
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    (general_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sum_up(general_folder)
    assert "config.json" in refusal(reader, general_folder)


CHANGED_TENSORS = {
    "missing": lambda tensors: tensors.pop("factored_offsets"),
    "unknown": lambda tensors: tensors.update(more=np.zeros(1, np.float32)),
    "turned": lambda tensors: tensors.update(
        {"layer_0/kernel": np.ascontiguousarray(tensors["layer_0/kernel"].T)}
    ),
    "float64": lambda tensors: tensors.update(factored_offsets=np.zeros(3)),
    "nan": lambda tensors: tensors["second_moment_offsets"].fill(np.nan),
}


@pytest.mark.parametrize("change", CHANGED_TENSORS)
def test_wrong_tensors_of_the_general_schema_are_refused(
    reader, general_folder, change
):
    tensors = load_file(general_folder / "model.safetensors")
    CHANGED_TENSORS[change](tensors)
    save_file(tensors, general_folder / "model.safetensors")
    sum_up(general_folder)
    assert "model.safetensors" in refusal(reader, general_folder)


@pytest.mark.parametrize("value", [1e-38, 1e11, 0, -1e-8, "1e-8", True])
def test_a_floor_that_float32_does_not_keep_is_refused(reader, folder, value):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["optimizer"]["epsilons"]["row_col"] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sum_up(folder)
    assert "row_col" in refusal(reader, folder)


@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b"\xff"], ids=["BOM", "latin"])
@pytest.mark.parametrize("name", ["config.json", "SHA256SUMS"])
def test_what_is_not_utf_8_is_refused(reader, folder, name, prefix):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(prefix + content)
    if name == "config.json":
        sum_up(folder)
    assert name in refusal(reader, folder)


def test_utf_16_is_refused(reader, folder):
    text = (folder / "config.json").read_text("utf-8")
    (folder / "config.json").write_text(text, encoding="utf-16")
    sum_up(folder)
    assert "config.json" in refusal(reader, folder)


CHANGES = {
    "foreign": lambda text: text + f"{'0' * 64}  elsewhere\n",
    "comment": lambda text: "# a comment\n" + text,
    "blank line": lambda text: "\n" + text,
    "twice": lambda text: text + text.splitlines()[0] + "\n",
    "cut off": lambda text: text[:-1],
    "one blank": lambda text: text.replace("  ", " "),
    "binary": lambda text: text.replace("  ", " *"),
    "tab": lambda text: text.replace("  ", "\t"),
    "CR": lambda text: text.replace("\n", "\r\n"),
    "capitals": lambda text: text.upper(),
    "outside": lambda text: text.replace("  model", "  ../artifact/model"),
    "absolute": lambda text: text + f"{'0' * 64}  /dev/zero\n",
    "short": lambda text: text[1:],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_line_that_is_no_checksum_is_refused(reader, folder, change):
    sums = folder / "SHA256SUMS"
    text = CHANGES[change](sums.read_text("utf-8"))
    sums.write_bytes(text.encode())
    refusal(reader, folder)


def test_every_listed_file_is_checked(reader, folder):
    (folder / "README").write_text("read", encoding="utf-8")
    digest = hashlib.sha256(b"read").hexdigest()
    with (folder / "SHA256SUMS").open("a", encoding="utf-8") as sums:
        sums.write(f"{digest}  README\n")
    reader(folder)
    (folder / "README").write_text("other", encoding="utf-8")
    assert "README" in refusal(reader, folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(reader, folder, value):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).flat[0] = value
    save_file(tensors, path)
    sum_up(folder)
    assert "model.safetensors" in refusal(reader, folder)


@pytest.mark.parametrize("size", [0, False, 1.5, "32", None, np.int64(32)])
def test_a_base_size_is_a_whole_number_when_it_is_made(size):
    with pytest.raises(ValueError, match=r"base\.width = .* must be a whole number"):
        Artifact(SmallFC(), {}, {"width": size})
