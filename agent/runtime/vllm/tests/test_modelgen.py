"""The model generator: bare Python, the same bytes every time, files that are what they claim."""

import hashlib
import json
import os
import subprocess
import sys

import explain
import modelgen
import pytest


def make(folder, *flags):
    modelgen.main([str(folder), *flags])
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in sorted(os.listdir(folder))}


@pytest.mark.parametrize("arch", ["opt", "llama"])
def test_the_same_arguments_give_the_same_bytes(tmp_path, arch):
    assert make(tmp_path / "a", "--arch", arch) == make(tmp_path / "b", "--arch", arch)


def test_another_seed_gives_other_weights_of_the_same_shape(tmp_path):
    a, b = make(tmp_path / "a"), make(tmp_path / "b", "--seed", "1")
    assert a["model.safetensors"] != b["model.safetensors"] and a["config.json"] == b["config.json"]
    assert os.path.getsize(tmp_path / "a/model.safetensors") == os.path.getsize(tmp_path / "b/model.safetensors")


@pytest.mark.parametrize("arch", ["opt", "llama"])
def test_a_generated_folder_has_nothing_to_complain_about(tmp_path, arch):
    make(tmp_path / "m", "--arch", arch)
    path = str(tmp_path / "m" / "model.safetensors")
    assert explain.look_at_safetensors(path) is None
    assert sorted(os.listdir(tmp_path / "m")) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip


def test_every_token_id_has_a_token(tmp_path):
    make(tmp_path / "m", "--vocab", "70000", "--hidden", "64")  # more than all pairs of bytes
    t = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    assert sorted(t["model"]["vocab"].values()) == list(range(70000))


def test_no_two_rows_of_an_embedding_are_equal(tmp_path):
    make(tmp_path / "m", "--vocab", "50000", "--hidden", "128")
    raw = (tmp_path / "m" / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    at, end = json.loads(raw[8 : 8 + n])["model.decoder.embed_tokens.weight"]["data_offsets"]
    rows = {raw[8 + n + i : 8 + n + i + 256] for i in range(at, end, 256)}
    assert len(rows) == 50000


def test_a_preset_has_the_shapes_of_the_real_model(tmp_path):
    o = modelgen.options([str(tmp_path), "--preset", "opt-125m"])
    size = sum(__import__("math").prod(shape) for _, shape, _ in modelgen.opt_tensors(o))
    assert size == 125_239_296  # as on the hub
    assert modelgen.options([str(tmp_path), "--preset", "llama-8b"]).arch == "llama"


def test_it_runs_on_a_bare_python_from_the_command_line(tmp_path, side):
    command = [sys.executable, "-I", "-S", os.path.join(side, "modelgen.py"), str(tmp_path / "m"), "--preset", "tiny"]
    p = subprocess.run(command, capture_output=True, text=True)
    assert p.returncode == 0 and "vocabulary 512" in p.stdout, p.stderr


@pytest.mark.parametrize(
    "flags", [["--vocab", "10"], ["--arch", "llama", "--preset", "opt-125m"], ["--hidden", "100", "--heads", "3"], ["--arch", "gpt"]]
)
def test_impossible_shapes_are_refused(tmp_path, flags):
    with pytest.raises(SystemExit) as e:
        modelgen.main([str(tmp_path / "m"), *flags])
    assert e.value.code == 2


def test_memory_does_not_grow_with_the_model(tmp_path, side):
    code = (
        f"import re, sys; sys.path.insert(0, {side!r}); import modelgen\n"
        f"modelgen.main([{str(tmp_path / 'm')!r}, '--preset', 'opt-125m'])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(p.stdout.split()[-1]) < 150_000, "KiB, for a model of 250 MB"
