"""A shortcut changes how long a start takes, and nothing else."""

import json
import subprocess

import pytest
from conftest import SIDE

pytestmark = pytest.mark.contract

COPIES = """
import copy, json, sys
sys.path.insert(0, sys.argv[1])
import shortcuts
from transformers import AutoTokenizer

def encodes(t):
    return [t.encode(x, add_special_tokens=s) for x in ("Hello my name is", "<new> a</s> b <odd>", "") for s in (True, False)]

def state(t):
    r = t._tokenizer
    return [encodes(t), t.decode([5, 300, 4]), sorted(t.get_vocab().items()), r.to_str(), str(r.get_added_tokens_decoder())]

t = AutoTokenizer.from_pretrained(sys.argv[2])
t.add_tokens(["<new>"]); t.add_special_tokens({"additional_special_tokens": ["<odd>"]})
long = copy.deepcopy(t)
shortcuts._tokenizer_copies(); shortcuts._vocabularies()
short = copy.deepcopy(t)
same = state(short) == state(long) == state(t)
short._tokenizer.enable_truncation(3)
short.add_tokens(["<later>"])
apart = t._tokenizer.truncation is None and "<later>" not in t.get_vocab() and "<later>" in short.get_vocab() and state(t) == state(long)
twin = copy.deepcopy(short)
kept = twin._tokenizer.truncation == short._tokenizer.truncation and state(twin) == state(short)
print("\\n" + json.dumps([same, apart, kept]))
"""


@pytest.mark.parametrize("model", ["tiny-opt", "opt-125m"])
def test_a_copy_of_a_tokenizer_is_equal_and_independent(runtime, models, model):
    p = subprocess.run([runtime.python, "-c", COPIES, SIDE, models[model]], env=runtime.env, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert json.loads(p.stdout.splitlines()[-1]) == [True, True, True]


def test_every_supported_vllm_allows_every_shortcut(zygote):
    with open(zygote.log) as f:
        said = f.read()
    assert "without a shortcut" not in said
