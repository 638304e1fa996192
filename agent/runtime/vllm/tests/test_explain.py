"""A failed load is explained in one line that names the thing and the file."""

import json

import explain
import modelgen
import pytest


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "m"
    modelgen.main([str(folder)])
    return folder


def why(folder, exc=None):
    load = {"argv": ["--model", str(folder)]}
    text = explain.message(exc or RuntimeError("Engine core initialization failed. See root cause above."), load)
    assert "\n" not in text
    return text


def test_a_missing_folder(tmp_path):
    assert why(tmp_path / "none") == f"model folder {tmp_path}/none does not exist"


def test_a_missing_config(model):
    (model / "config.json").unlink()
    assert why(model) == f"config.json is missing in model folder {model}"


def test_a_config_that_is_not_json(model):
    (model / "config.json").write_text("{")
    assert why(model).startswith(f"{model}/config.json cannot be read: ")


def test_truncated_weights(model):
    path = model / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    assert why(model) == f"{path} is truncated: the header describes {size} bytes, the file has {size - 1000}"


@pytest.mark.parametrize("junk", [b"", b"abc", b"\xff" * 4096, b"\x10" + b"\x00" * 7 + b"not json at all!" + b"\x00" * 99])
def test_corrupt_weights(model, junk):
    path = model / "model.safetensors"
    path.write_bytes(junk)
    assert why(model).startswith(f"{path} is ")


def test_a_healthy_model_leaves_the_word_to_the_root_cause(model):
    (model / "config.json").write_text(json.dumps({"architectures": ["OPTForCausalLM"]}))
    try:
        try:
            raise ValueError("max_model_len 99999 is\n too long")
        except ValueError as e:
            raise RuntimeError("Engine core initialization failed. See root cause above.") from e
    except RuntimeError as e:
        assert why(model, e) == "ValueError: max_model_len 99999 is too long"


def test_the_model_flag_is_found_in_both_spellings():
    assert explain.model_of({"argv": ["--model", "/a"]}) == explain.model_of({"argv": ["-x", "--model=/a"]}) == "/a"
    assert explain.model_of({"argv": ["--model"]}) is None
