"""The environment of a load: what is asked for, less what is never set."""

import os

import half


def test_development_endpoints_stay_off_whoever_asks(monkeypatch):
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    half.apply_env({"env": {"WARMD_TEST_X": 1}})
    assert os.environ.pop("WARMD_TEST_X") == "1"
    assert "VLLM_SERVER_DEV_MODE" not in os.environ
    half.apply_env({"env": {"VLLM_SERVER_DEV_MODE": "1"}})
    assert "VLLM_SERVER_DEV_MODE" not in os.environ
