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


FINGERPRINTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import shortcuts
import vllm.entrypoints.serve.utils.fingerprint as f

class Config:
    asked = 0
    def compute_hash(self):
        self.asked += 1
        return f"{id(self):032x}"

a, b = Config(), Config()
plain = [f.get_system_fingerprint(c) for c in (a, b)]
shortcuts._fingerprints()
a.asked = b.asked = 0
same = [f.get_system_fingerprint(c) for c in (a, a, b, b, b)] == [plain[0]] * 2 + [plain[1]] * 3
f.set_default_fingerprint_mode("none")
print("\\n" + json.dumps([same, a.asked, b.asked, f.get_system_fingerprint(b)]))
"""


def test_a_fingerprint_is_the_same_and_made_once(runtime):
    p = subprocess.run([runtime.python, "-c", FINGERPRINTS, SIDE], env=runtime.env, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert json.loads(p.stdout.splitlines()[-1]) == [True, 1, 1, None]


APP = """
import json, sys
sys.path.insert(0, sys.argv[1])
import adapter, shortcuts
from vllm.v1.engine.async_llm import AsyncLLM

v = adapter.Adapter()
args = v.parse(["--model", sys.argv[2], "--api-key", "k", "--enforce-eager"])
config = v.create_config(v.engine_args(args))
AsyncLLM.from_vllm_config = lambda vllm_config: "engine"
plain = v.server.build_app

def looks(build, *tasks):
    app = build(args, tasks, config.model_config)
    return [(r.path, sorted(getattr(r, "methods", ()) or ())) for r in app.routes], [str(m) for m in app.user_middleware]

shortcuts.build_app(v.server, args)
engine = AsyncLLM.from_vllm_config(vllm_config=config)
early, late = looks(v.server.build_app, "generate"), looks(plain, "generate")
other, wanted = looks(v.server.build_app, "embed"), looks(plain, "embed")
print("\\n" + json.dumps([engine, early == late, other == wanted, other != early]))
"""


def test_an_app_that_is_built_early_is_the_one_that_vllm_builds(runtime, models):
    p = subprocess.run([runtime.python, "-c", APP, SIDE, models["tiny-opt"]], env=runtime.env, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert json.loads(p.stdout.splitlines()[-1]) == ["engine", True, True, True]


@pytest.mark.parametrize("model", ["tiny-opt", "opt-125m"])
def test_a_copy_of_a_tokenizer_is_equal_and_independent(runtime, models, model):
    p = subprocess.run([runtime.python, "-c", COPIES, SIDE, models[model]], env=runtime.env, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert json.loads(p.stdout.splitlines()[-1]) == [True, True, True]


def test_every_supported_vllm_allows_every_shortcut(zygote):
    with open(zygote.log) as f:
        said = f.read()
    assert "without a shortcut" not in said
