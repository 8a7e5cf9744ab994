"""Importing the language task and its data loads no other framework."""

import json
import subprocess
import sys

CODE = """
import json, sys
import tasks.language_modelling, tasks.data.tfds_text, tasks.data.tokenizers
from tasks.data.standard_library import StandardLibrary
tasks.data.tfds_text.TFDSText(tokenizer=tasks.data.tokenizers.BytePairs())
StandardLibrary().load()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
HEAVY = {
    "array_record",
    "huggingface_hub",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "torch",
}


def test_an_import_and_the_default_text_load_no_other_framework():
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    loaded = set(json.loads(out.stdout))
    assert "jax" in loaded and sorted(HEAVY & loaded) == []
