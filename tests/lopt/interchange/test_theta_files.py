"""Files of learned_optimization and of Celo, made of reference arrays as those do."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, struct

from lopt import Artifact, SmallFC
from lopt.interchange import celo, learned_optimization, msgpack, theta_files
from lopt.learned.celo import Celo
from lopt.learned.celo2 import Celo2
from lopt.learned.celo_adam import CeloAdam
from lopt.learned.learnable import LearnableAdam, LearnableSGD, LearnableSGDM, decay
from lopt.learned.mlp_lopt import MLPLOpt
from lopt.learned.nn_adam import NNAdam
from lopt.learned.rnn_mlp import RNNMLP
from lopt.learned.velo import VeLO
from parametrization import ADAM_LIKE, STANDARD

LIBRARIES = {"learned_optimization": learned_optimization, "celo": celo}
# file -> (library, group, fields that it does not tell, what must come out)
CASES = {
    "small_fc_step0.01": (
        "learned_optimization",
        "theta",
        {"step_mult": 0.01},
        SmallFC(hidden_size=32, step_mult=0.01),
    ),
    "mlp_lopt": (
        "learned_optimization",
        "theta",
        {"step_mult": 0.01},
        MLPLOpt(hidden_size=32, step_mult=0.01),
    ),
    "nn_adam": (
        "learned_optimization",
        "theta",
        {"output_scale": 0.02, "rules": ADAM_LIKE},
        NNAdam(hidden_size=16, output_scale=0.02, rules=ADAM_LIKE),
    ),
    "rnn_mlp": (
        "learned_optimization",
        "theta",
        {"step_mult": 0.01},
        RNNMLP(step_mult=0.01),
    ),
    "velo_hyperv2": (
        "learned_optimization",
        "theta",
        {"rules": STANDARD},
        VeLO(lstm_hidden_size=16, param_inits=8),
    ),
    "celo_theta": ("celo", "", {"step_mult": 0.002}, Celo(step_mult=0.002)),
    "celo_adam_theta": ("celo", "", {}, CeloAdam()),
    "celo2_theta": ("celo", "", {}, Celo2()),
}


DEAD = ("rnn_params/linear/w", "rnn_params/linear/b")
CONTROLS = ("rnn_params/rnn_to_controls/w", "rnn_params/rnn_to_controls/b")
UNUSED = {
    "velo_hyperv2": DEAD,
    "celo_theta": DEAD + CONTROLS,
    "celo_adam_theta": DEAD,
}
"""Tensors that the originals keep, and that change nothing."""


def load(name, foreign, write, wrap=lambda theta: theta):
    library, group, fields, _ = CASES[name]
    path = write(foreign(name, group), wrap)
    return LIBRARIES[library].load(path, **fields)


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_read_and_keeps_every_number(name, foreign, write, tmp_path):
    library, group, _, expected = CASES[name]
    artifact = load(name, foreign, write)
    assert artifact.optimizer == expected
    assert artifact.provenance["imported"]["format"] == library
    assert artifact.provenance["imported"]["from"] == "theta.state"
    # Through our own folder and back to their names: the same arrays.
    artifact.save(tmp_path / "artifact")
    again = Artifact.load(tmp_path / "artifact")
    tensors, _ = theta_files.to_tensors(again, LIBRARIES[library].FORMATS)
    wanted = foreign(name, group)
    assert tensors.keys() == wanted.keys()
    for key, value in wanted.items():
        got = tensors[key]
        assert got.shape == value.shape and got.dtype == np.float32
        if key in UNUSED.get(name, ()):
            assert not np.any(got)
            continue
        np.testing.assert_array_equal(got, value, err_msg=key)


def test_layers_and_groups_of_inputs_stand_in_their_order(foreign, write):
    theirs, ours = foreign("celo2_theta", ""), load("celo2_theta", foreign, write).theta
    kernel, rows = ours["layer_0"]["kernel"], [1, 1, 1, 3, 1, 3, 1, 3, 1, *[3] * 5]
    ends = np.cumsum(rows)
    for i, (end, number) in enumerate(zip(ends, rows, strict=True)):
        np.testing.assert_array_equal(
            kernel[end - number : end], theirs[f"ff_mod_stack/~/w0__{i}"]
        )
    np.testing.assert_array_equal(
        ours["layer_2"]["kernel"], theirs["ff_mod_stack/~/w2"]
    )


def test_recurrent_parts_stand_where_they_belong(foreign, write):
    theirs, ours = foreign("rnn_mlp"), load("rnn_mlp", foreign, write).theta
    for path, name in {
        ("lstm", "kernel"): "rnn_params/rnn/linear/w",
        ("lstm", "cell"): "lstm_init_state/cell",
        ("to_network", "kernel"): "rnn_to_ff_params/rnn_to_ff/w",
        ("to_tensors", "bias"): "rnn_to_in_params/rnn_to_in/b",
        ("layer_0", "kernel"): "ffmod_params/mlp/~/linear_0/w",
        ("from_network",): "initial_from_mlp",
        ("from_tensors",): "initial_from_lstm",
    }.items():
        leaf = ours
        for key in path:
            leaf = leaf[key]
        np.testing.assert_array_equal(leaf, np.squeeze(theirs[name]))
    theirs = foreign("velo_hyperv2")
    ours = load("velo_hyperv2", foreign, write).theta
    for part, name in {"exchange": "linear_1", "inputs": "linear_2"}.items():
        np.testing.assert_array_equal(
            ours["scheduler"][part]["kernel"], theirs[f"rnn_params/{name}/w"]
        )
    bank = ours["bank"]["layer_0"]["kernel"]
    assert bank.shape == (8, 30, 4)
    np.testing.assert_array_equal(bank[:, 3:6], theirs["ff_mod_stack/~/w0__3"])
    theirs, ours = foreign("nn_adam"), load("nn_adam", foreign, write).theta
    for name, key in {
        "lr": "learning_rate",
        "beta2": "b2",
        "epsilon": "epsilon",
    }.items():
        assert ours["hyperparameters"][key] == theirs[f"per_layer_{name}"]


def test_hyperparameters_are_those_of_the_classes_there(write):
    """As `LearnableSGD` and its siblings there transform them."""
    rate = np.log(np.float32(0.02))
    sgd = learned_optimization.load(write({"log_lr": rate}))
    assert sgd.optimizer == LearnableSGD() and sgd.theta["log_learning_rate"] == rate
    momentum = {"log_lr": rate, "one_minus_momentum": np.log(np.float32(1 - 0.95))}
    sgdm = learned_optimization.load(write(momentum))
    assert sgdm.optimizer == LearnableSGDM()
    got = decay(sgdm.theta["log_momentum_complement"])
    np.testing.assert_allclose(got, 0.95, rtol=1e-6)
    theirs = {
        "log_lr": rate,
        "one_minus_beta1": np.log(np.float32(0.1)),
        "one_minus_beta2": np.log(np.float32(0.02)),
        "log_epsilon": np.log(np.float32(1e-7)),
    }
    adam = learned_optimization.load(write(theirs), rules=ADAM_LIKE)
    assert adam.optimizer == LearnableAdam(rules=ADAM_LIKE)
    got = [decay(adam.theta[f"log_b{i}_complement"]) for i in (1, 2)]
    np.testing.assert_allclose(got, [0.9, 0.98], rtol=1e-6)
    assert adam.theta["log_eps"] == theirs["log_epsilon"]


def test_what_has_no_class_there_is_not_written(random_theta):
    artifact = Artifact(Celo2(), random_theta(Celo2()))
    with pytest.raises(ValueError, match="no class there for a Celo2"):
        theta_files.to_tensors(artifact, learned_optimization.FORMATS)


@struct.dataclass
class ParameterCheckpoint:
    params: dict
    gen_id: str
    step: int


def outer_state(theta):
    return {
        "gradient_learner_state": {
            "theta_opt_state": {
                "params": theta,
                "optax_opt_state": {"0": {"mu": theta}},
            }
        },
        "elapsed_time": np.float32(3.0),
        "total_inner_steps": 7,
    }


@pytest.mark.parametrize(
    "wrap", [lambda theta: ParameterCheckpoint(theta, "abc", 3), outer_state]
)
def test_theta_is_found_in_both_kinds_of_checkpoint(wrap, foreign, write):
    artifact = load("mlp_lopt", foreign, write, wrap)
    theirs = foreign("mlp_lopt")
    np.testing.assert_array_equal(
        artifact.theta["layer_1"]["kernel"], theirs["mlp/~/linear_1/w"]
    )


def test_arrays_of_jax_and_of_several_pieces_are_read(foreign, write, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 512)
    theirs = {key: jnp.asarray(value) for key, value in foreign("mlp_lopt").items()}
    artifact = learned_optimization.load(write(theirs))
    kernel = artifact.theta["layer_0"]["kernel"]
    np.testing.assert_array_equal(kernel, theirs["mlp/~/linear_0/w"])


def changed(**changes):
    def change(theta):
        layer = theta["mlp"]["~"]["linear_1"] | changes
        layer = {key: value for key, value in layer.items() if value is not None}
        return {"mlp": {"~": theta["mlp"]["~"] | {"linear_1": layer}}}

    return change


DAMAGE = {
    "missing": (changed(b=None), "lacks the tensor mlp/~/linear_1/b"),
    "unknown": (changed(c=np.zeros(1, "float32")), "unknown tensors"),
    "shape": (changed(b=np.zeros(31, "float32")), "linear_1/b is float32 of shape"),
    "transposed": (changed(w=np.zeros([32, 31], "float32")), "linear_1/w is float32"),
    "whole": (changed(b=np.zeros(32, "int32")), "linear_1/b is int32, must be of flo"),
    "nan": (changed(b=np.full(32, np.nan, "float32")), "not finite"),
    "overflow": (changed(b=np.full(32, 1e300)), "not finite"),
    "a text": (changed(b="zeros"), "linear_1/b is no array, but of type str"),
    "a list": (changed(b=[np.zeros(2)]), "linear_1/b/0 is float64"),
    "complex": (changed(b=1j), "linear_1/b is no array, but of type complex"),
    "of another class": (lambda theta: {"nothing": theta}, "no theta of a class that"),
    "empty": (lambda theta: {}, "no theta of a class"),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_what_is_wrong_is_named_in_one_line(case, foreign, write):
    change, needle = DAMAGE[case]
    path = write(foreign("mlp_lopt"), change)
    with pytest.raises(ValueError) as info:
        learned_optimization.load(path)
    message = str(info.value)
    assert str(path) in message and "\n" not in message
    if case != "a list":
        assert needle in message, message


def test_a_wrong_field_is_named(foreign, write):
    path = write(foreign("mlp_lopt"))
    for fields, needle in (
        ({"step_mult": -1.0}, "step_mult = -1.0"),
        ({"colour": 1}, "colour"),
    ):
        with pytest.raises(ValueError, match=needle) as info:
            learned_optimization.load(path, **fields)
        assert str(path) in str(info.value)


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_is_not_run(tmp_path):
    path = tmp_path / "theta.state"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "harm")))
    for library in LIBRARIES.values():
        with pytest.raises(ValueError, match="cannot be read as msgpack") as info:
            library.load(path)
        assert str(path) in str(info.value) and "\n" not in str(info.value)
    assert not (tmp_path / "harm").exists()


def test_damaged_bytes_end_in_one_line(foreign, write):
    """Cut or flipped anywhere, a file is read or refused, and nothing else."""
    path = write(foreign("mlp_lopt"))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for trial in range(150):
        data = bytearray(whole)
        place = int(rng.integers(len(data) if trial % 3 else 200))
        if trial % 2:
            data = data[:place]
        else:
            data[place] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            learned_optimization.load(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 75


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere cannot be read: No such file"):
        msgpack.read_tree(tmp_path / "nowhere")
    (tmp_path / "list").write_bytes(serialization.msgpack_serialize([1]))
    with pytest.raises(ValueError, match="no dict of arrays, but list"):
        msgpack.read_tree(tmp_path / "list")
