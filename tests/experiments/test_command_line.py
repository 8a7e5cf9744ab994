"""Bad input ends in one line and exit code 2, before anything is compiled."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments import (
    command_line,
    coordinate_check,
    evaluate,
    export,
    learning_rate_transfer,
    train,
)
from experiments.command_line import BAD_INPUT, InputError, take_option
from experiments.presets import configs
from experiments.presets.estimators import ESTIMATORS, take_estimator
from experiments.presets.families import on_families
from experiments.presets.optimizers import OPTIMIZERS, take_optimizer
from experiments.presets.serialization import (
    decode,
    differences,
    digest_of,
    encode,
)
from experiments.run import run_directory
from lopt.learned.celo2 import Celo2
from lopt.learned.small_fc import SmallFC
from lopt.release import registry
from lopt.wrappers import ScheduledSteps
from lopt.wrappers.base import Wrapper
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.pes import PES
from metatrain.truncation import EpisodeLengths
from parametrization import ADAM_LIKE, STANDARD
from tasks.registry import FAMILIES


def parse(*arguments):
    return command_line.choose_preset(configs.presets(), "train", arguments)


def test_fields_are_overridden_by_dotted_names():
    name, config = parse(
        "quickstart", "--estimator.sigma", "0.25", "--task.model.widths", "8", "4"
    )
    assert name == "quickstart"
    assert config.estimator.sigma == 0.25
    assert config.task.model.widths == (8, 4)
    assert config.outer == configs.QUICKSTART.outer


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (
            ["--estimator.sigmaa", "1"],
            ["--estimator.sigmaa", "meant '--estimator.sigma'"],
        ),
        (["--num-step", "3"], ["--num-step", "meant '--num-steps'"]),
        (["--estimator.sigma", "abc"], ["--estimator.sigma", "'abc'", "FLOAT"]),
        (["--num-steps", "1.5"], ["--num-steps", "'1.5'", "INT"]),
        (["--num-steps", "0"], ["num_steps = 0", "must lie in [1, 10⁸)"]),
        (["--task.batch-size", "-3"], ["batch_size = -3", "must be a positive"]),
        (["--task.model.widths", "0"], ["widths = (0,)", "positive"]),
        (
            ["--estimator.sigma", "nan"],
            ["estimator: sigma = nan", "must be a number"],
        ),
        (["--lopt.rules", "FOO"], ["--lopt.rules", "'FOO'", "ADAM_LIKE"]),
        (["--estimator.lengths.minimum", "2100"], ["lengths.maximum = ", "2100"]),
        (["--num-steps"], ["--num-steps needs INT"]),
        (["--run.hosts", "two"], ["--run.hosts 'two' must be one of one, auto"]),
        (["extra"], ["unknown field or value: extra; --help"]),
        (["--seed", "1", "constant"], ["unknown field or value: constant; --help"]),
        (["--estimator.sigma", "1e300"], ["sigma = 1e+300", "must lie in"]),
        (["--objective.cap", "inf"], ["cap = inf", "must lie in"]),
        (["--validation.num-steps", "0"], ["validation: num_steps = 0"]),
        (["--num-steps", "9" * 20], ["num_steps = 9999", "2⁶³"]),
    ],
)
def test_bad_values_name_the_field_the_value_and_what_is_right(arguments, needles):
    with pytest.raises(InputError) as error:
        parse("quickstart", *arguments)
    message = str(error.value)
    assert "\n" not in message and "─" not in message
    for needle in needles:
        assert needle in message, message


def test_a_field_of_a_group_is_suggested_in_its_group():
    with pytest.raises(InputError, match=r"meant '--task\.groups\.0\.weight'"):
        parse("velo_like", "--task.groups.0.weigh", "1")


def test_an_option_is_taken_out_of_a_command_line():
    words = ["a", "--x_y", "1", "--x-y.z", "2", "--x-y=-3", "b"]
    assert take_option(words, "--x-y") == ("-3", ["a", "--x-y.z", "2", "b"])
    assert take_option(words, "--z") == (None, words)
    for missing in (["--z"], ["--z", "--x"]):
        with pytest.raises(InputError, match="--z needs a value"):
            take_option(missing, "--z")


def test_the_commands_are_the_modules_that_can_be_run():
    folder = Path(command_line.__file__).parent
    found = [p.stem for p in folder.glob("*.py") if "__main__" in p.read_text()]
    assert tuple(sorted(found)) == command_line.COMMANDS


def parse_with_optimizer(*arguments):
    lopt, rest = take_optimizer(arguments)
    presets = configs.with_optimizer(configs.presets(), lopt)
    return command_line.choose_preset(presets, "train", rest)[1]


def test_a_named_optimizer_takes_the_place_of_the_presets_own():
    config = parse_with_optimizer(
        *("quickstart", "--lopt", "celo2", "--lopt.adam-decays", "0.8", "0.9"),
        *("--seed", "4"),
    )
    assert config.lopt == Celo2(adam_decays=(0.8, 0.9), rules=ADAM_LIKE)
    assert config.seed == 4 and config.task == configs.QUICKSTART.task
    given = ("--lopt=nominal", "mlp", "--lopt.inner.exp-mult", "2")
    wrapped = parse_with_optimizer(*given)
    assert wrapped.lopt.inner.exp_mult == 2.0 and wrapped.lopt.rules is ADAM_LIKE
    assert take_optimizer(["mlp", "--seed", "1"]) == (None, ["mlp", "--seed", "1"])


def test_a_rate_is_that_of_the_rule_with_and_without_wrappers():
    rate = ("--lopt.learning-rate", "0.01")
    bare = ScheduledSteps(Celo2(rules=ADAM_LIKE), 0.5, "cosine")
    presets = {
        name: ("", partial(dataclasses.replace, configs.QUICKSTART, lopt=lopt))
        for name, lopt in (("bare", bare.inner), ("scheduled", bare))
    }
    for name in presets:
        config = command_line.choose_preset(presets, "train", [name, *rate])[1]
        inner = config.lopt if name == "bare" else config.lopt.inner
        assert inner.learning_rate == 0.01
    assert config.lopt.learning_rate == 0.5


def test_truth_values_are_taken_as_the_help_shows_them():
    celo = parse_with_optimizer(
        *("quickstart", "--lopt", "celo", "--lopt.rules", "STANDARD"),
        *("--lopt.param-scale-mult", "True"),
    )
    assert celo.lopt.param_scale_mult is True
    option = "--estimator.lengths.staggered"
    wanted = f"{option} False: write {option} or --estimator.lengths.no-staggered"
    with pytest.raises(InputError, match=re.escape(wanted)):
        command_line.choose_preset(
            configs.presets(), "train", ["quickstart", option, "False"]
        )


def test_every_named_optimizer_survives_json_in_a_configuration():
    kinds = set()
    for named in OPTIMIZERS.values():
        config = dataclasses.replace(configs.QUICKSTART, lopt=named.make())
        stored = json.loads(json.dumps(encode(config), allow_nan=False))
        assert decode(configs.TrainConfig, stored) == config
        kinds.add(stored["lopt"]["kind"])
    learned = [kind for kind in registry.LEARNED if not issubclass(kind, Wrapper)]
    assert kinds == {kind.__name__ for kind in learned}


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["--lopt"], "--lopt needs a name: small_fc, "),
        (["--lopt", "sgd"], "unknown optimizer --lopt 'sgd': known are small_fc, "),
        (["--lopt=celo2", "--lopt.step-mult", "1"], "--lopt.step-mult"),
        (["--lopt=celo2", "--lopt.hidden-size", "0"], "hidden_size = 0"),
    ],
)
def test_a_wrong_optimizer_is_named(arguments, needle):
    with pytest.raises(InputError) as error:
        parse_with_optimizer("quickstart", *arguments)
    assert needle in str(error.value) and "\n" not in str(error.value)


def test_runs_of_the_time_of_one_optimizer_go_on(tmp_path):
    config = dataclasses.replace(configs.QUICKSTART, lopt=SmallFC())
    stored = encode(config)
    assert stored["lopt"].pop("kind") == "SmallFC"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    again = run_directory.read_config(tmp_path)
    assert again == encode(config)
    assert decode(configs.TrainConfig, again) == config


def test_equal_configurations_are_one_run():
    """Whole numbers in fields of floats among them, written down and read again."""
    found = set()
    for rate in (1, 1.0, np.float32(1), np.int64(1)):
        outer = dataclasses.replace(configs.QUICKSTART.outer, learning_rate=rate)
        config = dataclasses.replace(configs.QUICKSTART, outer=outer)
        stored = json.loads(json.dumps(encode(config)))
        again = encode(decode(configs.TrainConfig, stored))
        found |= {digest_of(stored), digest_of(again)}
    low = dataclasses.replace(configs.QUICKSTART, feature_precision="bfloat16")
    assert len(found) == 1 and digest_of(encode(low)) not in found
    assert digest_of(encode(low)) != digest_of(encode(configs.QUICKSTART))


def parse_with_estimator(*arguments):
    name, rest = take_estimator(arguments)
    presets = configs.with_estimator(configs.presets(), name)
    return command_line.choose_preset(presets, "train", rest)[1]


def test_a_named_estimator_takes_the_place_of_the_presets_own_and_its_sizes():
    own = configs.QUICKSTART.estimator
    for name in ESTIMATORS:
        config = parse_with_estimator("quickstart", "--estimator", name)
        es = config.estimator
        whole = own.lengths.maximum if name == "full_es" else own.truncation
        assert (es.truncation, es.chunk) == (whole, own.chunk)
        if name != "full_es":
            assert es.lengths == own.lengths
        if name != "backpropagation":
            assert (es.num_pairs, es.sigma) == (own.num_pairs, own.sigma)
        stored = json.loads(json.dumps(encode(config), allow_nan=False))
        assert decode(configs.TrainConfig, stored) == config
    assert isinstance(es, Backpropagation) and es.num_particles == own.num_pairs
    given = ("--estimator.pairs-per-task", "4", "--estimator.refresh", "3")
    factors = ("--estimator.sigma-factors", "layer_0", "2", "layer_1/bias", "0.5")
    es = parse_with_estimator(
        "quickstart", "--estimator=pes", *given, *factors
    ).estimator
    assert isinstance(es, PES) and (es.pairs_per_task, es.refresh) == (4, 3)
    assert es.sigma_factors == (("layer_0", 2.0), ("layer_1/bias", 0.5))


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["--estimator"], "--estimator needs a name: pes, truncated_es, "),
        (["--estimator", "es"], "unknown estimator --estimator 'es': known are pes, "),
        (
            ["--estimator=backpropagation", "--estimator.sigma", "1"],
            "--estimator.sigma",
        ),
        (["--estimator=pes", "--estimator.refresh", "0"], "refresh = 0 must be"),
        (
            ["--estimator=pes", "--estimator.sigma-factors", "layer_9", "2"],
            "sigma_factors: theta has no part 'layer_9'; it has ",
        ),
    ],
)
def test_a_wrong_estimator_is_named(arguments, needle):
    with pytest.raises(InputError) as error:
        parse_with_estimator("quickstart", *arguments)
    assert needle in str(error.value) and "\n" not in str(error.value)


def test_full_es_unrolls_whole_episodes(monkeypatch, capsys):
    full = ["quickstart", "--estimator", "full_es", "--init-from", "/nowhere"]
    window = ["--estimator.truncation", "1999"]
    stages = ["--estimator.lengths.stages", "9", "2000", "2001"]
    for given, words in (
        (window, "truncation = 1999 must be at least the longest episode, 2000"),
        (stages, "truncation = 2000 must be at least the longest episode, 2001"),
    ):
        code, error = exit_of(monkeypatch, capsys, train, *full, *given)
        assert_one_line(code, error)
        assert f"--estimator full_es: {words} steps" in error
    lengths = ("--estimator.lengths.minimum", "1999", "--estimator.lengths.maximum")
    for given in (["--estimator.truncation", "2001"], [*window, *lengths, "1999"]):
        # Only the artifact is refused.
        code, error = exit_of(monkeypatch, capsys, train, *full, *given)
        assert "error: --init-from /nowhere" in error


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (
            ["--estimator", "backpropagation", "--estimator.sigma", "1"],
            "--estimator.sigma exists for --estimator pes, truncated_es, noise_reuse",
        ),
        (["--lopt.adam-decays=.9"], "--lopt.adam-decays exists for --lopt celo2,"),
        (["--task.model.patch", "4"], "exists for the presets vit, tfds_vit"),
        (["--task.model.depth", "4"], "the presets vit, transformer, transformer_ti"),
        (["--nonsense", "1"], "--nonsense, 1; --help shows what is known"),
    ],
)
def test_a_field_of_another_component_or_preset_is_said_to_be_there(
    monkeypatch, capsys, arguments, needle
):
    code, error = exit_of(monkeypatch, capsys, train, "quickstart", *arguments)
    assert_one_line(code, error)
    assert needle in error


def test_a_wrong_name_is_refused_before_the_run_has_a_directory(
    monkeypatch, capsys, tmp_path
):
    directory = ["quickstart", "--run.directory", tmp_path / "run"]
    for given in (
        ["--init-from", tmp_path / "nowhere"],
        ["--validation.suite", "nope"],
    ):
        code, error = exit_of(monkeypatch, capsys, train, *directory, *given)
        assert_one_line(code, error)
        assert str(given[1]) in error and not (tmp_path / "run").exists()


def test_a_path_that_no_artifact_can_name_is_refused_at_the_start(
    monkeypatch, capsys, tmp_path
):
    given = ["--init-from", tmp_path / "\udcff", "--run.directory", tmp_path / "run"]
    code, error = exit_of(monkeypatch, capsys, train, "quickstart", *given)
    assert_one_line(code, error)
    assert "init_from = " in error and "must be Unicode text" in error


def test_a_damaged_artifact_is_refused_before_anything_is_compiled(
    monkeypatch, capsys, tmp_path
):
    def compile_nothing(*_):
        raise AssertionError

    monkeypatch.setattr(coordinate_check, "resized", compile_nothing)
    given = ["--optimizer", "artifact", "--artifact", tmp_path, "--out-dir", tmp_path]
    code, error = exit_of(monkeypatch, capsys, coordinate_check, "mlp", *given)
    assert_one_line(code, error)
    assert "model.safetensors is missing" in error


@pytest.mark.parametrize(
    ("credit", "name"),
    [("accumulated", "pes"), ("fresh", "truncated_es"), ("episode", "noise_reuse_es")],
)
def test_runs_of_the_time_of_one_estimator_go_on(tmp_path, credit, name):
    stored = encode(configs.QUICKSTART)
    names = ("num_pairs", "truncation", "sigma", "chunk", "lengths")
    old = {name: stored["estimator"][name] for name in names} | {"credit": credit}
    lengths = ("minimum", "maximum", "staggered")
    old["lengths"] = {name: old["lengths"][name] for name in lengths}
    (tmp_path / "config.json").write_text(json.dumps(stored | {"estimator": old}))
    again = decode(configs.TrainConfig, run_directory.read_config(tmp_path)).estimator
    # Lengths had no stages then.
    lengths = EpisodeLengths(**old["lengths"])
    own = dataclasses.replace(configs.QUICKSTART.estimator, lengths=lengths)
    assert again == ESTIMATORS[name](own)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(InputError, match=r"quikstart.*quickstart"):
        parse("quikstart")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--run.directory", "vae", "quickstart"],
        ["quickstart", "--run.directory", "vae"],
        ["--run.directory=vae", "quickstart"],
        ["--run.no-stream", "quickstart", "--run.directory", "vae"],
        ["--task.model.widths", "8", "4", "quickstart", "--run.directory", "vae"],
    ],
)
def test_a_value_of_an_option_is_no_preset(arguments):
    name, config = parse(*arguments)
    assert name == "quickstart" and str(config.run.directory) == "vae"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run.directory", "vae"], "no preset is given, only options .* first"),
        (["quikstart", "--run.directory", "vae"], "unknown preset 'quikstart'"),
        (["--seed", "3", "vae", "mlp"], "'vae' and 'mlp' may each be the preset"),
        (
            ["--outer.frozen", "bias", "vae"],
            "'vae' may be the preset or a value of --outer.frozen: put the preset",
        ),
    ],
)
def test_a_preset_that_is_not_clear_is_refused(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


def exit_of(monkeypatch, capsys, module, *arguments):
    monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        command_line.run(module.main)
    return stop.value.code, capsys.readouterr().err


def assert_one_line(code, error):
    assert code == BAD_INPUT
    assert error.startswith("error: ")
    assert error.count("\n") == 1 and "Traceback" not in error


def test_commands_end_with_one_line_and_code_2(monkeypatch, capsys, tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("x")
    cases = [
        (train, ["quickstart", "--nonsense", "1"]),
        (train, ["quickstart", "--run.directory", occupied / "below"]),
        (train, ["quickstart", "--run.directory", occupied]),
        (train, ["quickstart", "--run.directory", ""]),
        (train, ["quickstart", "--run.devices", "100000"]),
        (train, ["quickstart", "--dry-run", "--run.devices", "3"]),
        (train, ["quickstart", "--dry-run", "--init-from", tmp_path / "nowhere"]),
        (train, ["quickstart", "--dry-run", "--validation.suite", "nope"]),
        (train, ["quickstart", "--dry-run", "--outer.accumulate", "2001"]),
        (export, [tmp_path / "nowhere", tmp_path / "out"]),
        (export, [tmp_path, occupied]),
        (evaluate, ["--artifact", tmp_path / "nowhere"]),
        (evaluate, ["--artifact", tmp_path]),
        (evaluate, ["--artifact", tmp_path, "--suite", "nonsense"]),
    ]
    for module, arguments in cases:
        code, error = exit_of(monkeypatch, capsys, module, *arguments)
        assert_one_line(code, error)


def printing(text, **pipes):
    """A command that prints for ever, or once."""
    code = f"from experiments import command_line as c; c.run(lambda: {text})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        **pipes,
    )


def test_a_command_whose_output_nobody_reads_has_not_succeeded():
    text = "[print('a line', flush=True) for _ in iter(int, 1)]"
    process = printing(text, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"a line\n"
    process.stdout.close()
    assert process.wait(timeout=60) == command_line.UNREAD == 141


def test_signs_that_a_terminal_lacks_are_replaced():
    process = printing("print('2 \u2013 3')", stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0] == b"2 ? 3\n"
    assert process.returncode == 0


def test_help_explains_every_field(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "quickstart", "--help"])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert not stop.value.code
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "Standard deviation of the perturbation",
        "Units of each hidden layer",
        "Outer steps between checkpoints",
        "Peak learning rate",
        "Shortest episode",
    ):
        assert words in text


def test_configurations_survive_json():
    config = parse("quickstart", "--run.directory", "some/where", "--seed", "7")[1]
    text = json.dumps(encode(config))
    assert decode(configs.TrainConfig, json.loads(text)) == config


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(extra=1), "config.extra is not a field"),
        (lambda c: c.pop("seed"), "config.seed is missing"),
        (lambda c: c.update(seed="0"), "config.seed = '0' must be a whole number"),
        (lambda c: c.update(seed=True), "config.seed = True must be a whole number"),
        (
            lambda c: c["lopt"]["inner"]["inner"].update(rules="X"),
            "config.lopt.inner.inner.rules = 'X'",
        ),
        (
            lambda c: c["task"].update(model=3),
            "config.task.model = 3 must be of type Model",
        ),
    ],
)
def test_a_stored_configuration_is_read_strictly(edit, message):
    stored = encode(configs.QUICKSTART)
    edit(stored)
    with pytest.raises(ValueError, match=message):
        decode(configs.TrainConfig, stored)


def test_differences_name_leaves():
    stored = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    wanted = {"a": {"b": 2, "c": [1, 2]}, "e": 3}
    assert differences(stored, wanted) == [
        "a.b: 1 -> 2",
        "d: None -> absent",
        "e: absent -> 3",
    ]


def test_a_data_folder_is_no_field_of_a_configuration(monkeypatch, tmp_path):
    monkeypatch.delenv(command_line.DATA_DIR, raising=False)
    for given in (["--data-dir", str(tmp_path)], [f"--data-dir={tmp_path}"]):
        name, config = parse(*given, "quickstart", "--seed", "3")
        assert (name, config.seed) == ("quickstart", 3)
        assert os.environ[command_line.DATA_DIR] == str(tmp_path)
    for given in (["--data-dir"], ["--data-dir="], ["--data-dir", "~nobody/x"]):
        with pytest.raises(InputError, match="--data-dir"):
            parse("quickstart", *given)


def test_a_preset_on_prepared_data_is_overridden_before_the_disk_is_read(monkeypatch):
    monkeypatch.setenv(command_line.DATA_DIR, "/nowhere")
    name, config = parse("tfds_images", "--task.data.name", "cifar10_subset")
    assert name == "tfds_images" and config.task.data.name == "cifar10_subset"


def test_every_family_is_a_preset_of_every_command_and_survives_json():
    for name in FAMILIES:
        config = configs.on_family(name)
        stored = json.loads(json.dumps(encode(config)))
        assert decode(configs.TrainConfig, stored) == config
    for config in (
        coordinate_check.CoordinateConfig,
        learning_rate_transfer.TransferConfig,
    ):
        presets = on_families(config)
        assert presets["vit"][1]().task.width == 32
        with pytest.raises(ValueError, match="a Quadratic has no width"):
            presets["quadratic"][1]()


def test_checks_refuse_what_they_would_ignore():
    task = FAMILIES["mlp"].task().with_rules(STANDARD)
    for config in (
        coordinate_check.CoordinateConfig,
        learning_rate_transfer.TransferConfig,
    ):
        with pytest.raises(ValueError, match=r"task\.model\.rules = STANDARD: leave"):
            config(task)


@pytest.mark.slow
def test_a_coordinate_check_from_the_command_line(monkeypatch, capsys, tmp_path):
    out = tmp_path / "out"
    arguments = ["mlp", "--sizes", "8", "16", "--num-steps", "2", "--num-seeds", "1"]
    monkeypatch.setattr("sys.argv", ["check", *arguments, "--out-dir", str(out)])
    coordinate_check.main()
    text = capsys.readouterr().out
    assert "μP (ADAM_LIKE), after 2 steps" in text and "standard: " in text
    stored = json.loads((out / "coordinate_check.json").read_text())
    assert stored["checks"]["μP"]["sizes"] == [8, 16]
    assert (out / "coordinate_check.png").read_bytes().startswith(b"\x89PNG")
    # Nothing moves, or everything diverges: numbers and a word, never a traceback.
    for rate, word in (("1e-50", "no layer has moved"), ("1e38", "diverged")):
        given = [*arguments, "--learning-rate", rate, "--out-dir", str(out)]
        monkeypatch.setattr("sys.argv", ["check", *given])
        coordinate_check.main()
        assert word in capsys.readouterr().out
        json.loads(
            (out / "coordinate_check.json").read_text(), parse_constant=pytest.fail
        )
