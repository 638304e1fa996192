"""What the tests share. Fast tests need nothing but Python; the contract tests need real installs of vLLM.

WARMD_PYTHONS=path1:path2   the Pythons of the vLLM installs to hold to the contract (default: the one that runs pytest)
WARMD_TEST_CACHE=DIR        keeps vLLM's caches between runs (saves about a minute per install)
"""

import json
import os
import select
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
SIDE = os.path.dirname(HERE)
sys.path[:0] = [SIDE, HERE]

import drive
import modelgen
import process

PYTHONS = [p for p in os.environ.get("WARMD_PYTHONS", sys.executable).split(":") if p]


def ended(name, timeout=60):
    """Waits for the end of one process, by pid and start; fails when it does not come."""
    try:
        fd = process.open_pidfd(name["pid"], name["start"])
    except ProcessLookupError:
        return
    try:
        p = select.poll()
        p.register(fd, select.POLLIN)
        assert p.poll(timeout * 1000), f"process {name} still runs after {timeout} s"
    finally:
        os.close(fd)


def named(pid):
    return {"pid": pid, "start": process.start_time(pid)}


@pytest.fixture
def side():
    return SIDE


@pytest.fixture
def exec_zygote():
    z = drive.Zygote(sys.executable, {"PATH": os.environ["PATH"]}, kind="exec")
    yield z
    z.close()


class Runtime:
    """One vLLM install with a runtime folder, as `warmd runtime add` leaves it."""

    def __init__(self, python, folder, cache):
        self.python, self.folder = python, str(folder)
        self.profile = os.path.join(self.folder, "profile.json")
        c = str(cache)
        self.env = {
            "PATH": f"{os.path.dirname(python)}:/usr/bin:/bin",
            "HOME": c,
            "LANG": "C.UTF-8",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "2",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_CACHE_ROOT": c,
            "HF_HOME": f"{c}/hf",
            "TRITON_CACHE_DIR": f"{c}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{c}/inductor",
        }
        facts = self._run("import importlib.metadata as m, json; print(json.dumps(m.version('vllm')))")
        self.version = facts.split("+")[0]
        if "cpu" not in facts:  # 0.26.0 knows a CPU build by its version alone: say it, without touching the venv
            info = os.path.join(self.folder, "site", f"vllm-{self.version}+cpu.dist-info")
            os.makedirs(info)
            with open(os.path.join(info, "METADATA"), "w") as f:
                f.write(f"Metadata-Version: 2.1\nName: vllm\nVersion: {self.version}+cpu\n")
            self.env["PYTHONPATH"] = os.path.dirname(info)
        manifest = {"name": "test", "kind": "vllm", "engine": "vllm", "version": self.version, "python": python, "device": "cpu", "env": self.env}
        with open(os.path.join(self.folder, "runtime.json"), "w") as f:
            json.dump(manifest, f)

    def _run(self, code):
        p = subprocess.run([self.python, "-c", code], env=self.env, capture_output=True, text=True)
        assert p.returncode == 0, f"{self.python} has no vLLM: {p.stderr}"
        return json.loads(p.stdout)

    def rehearse(self):
        return subprocess.run(
            [self.python, os.path.join(SIDE, "rehearse.py"), "--runtime", self.folder], env=self.env, capture_output=True, text=True
        )


@pytest.fixture(scope="session", params=PYTHONS, ids=lambda p: os.path.basename(os.path.dirname(os.path.dirname(p))) or "python")
def rehearsed(request, tmp_path_factory):
    """A runtime after its rehearsal, and what the rehearsal said."""
    folder = tmp_path_factory.mktemp("runtime")
    cache = folder / "cache"
    if keep := os.environ.get("WARMD_TEST_CACHE"):
        cache = os.path.join(keep, request.param.strip("/").replace("/", "-"))
    os.makedirs(cache, exist_ok=True)
    runtime = Runtime(request.param, folder, cache)
    return runtime, runtime.rehearse()


@pytest.fixture(scope="session")
def runtime(rehearsed):
    assert rehearsed[1].returncode == 0, rehearsed[1].stdout + rehearsed[1].stderr
    return rehearsed[0]


@pytest.fixture(scope="session")
def zygote(runtime):
    z = drive.Zygote(runtime.python, runtime.env, profile=runtime.profile)
    yield z
    z.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders with the models that every start is tried with."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    for name, preset, arch in (("tiny-opt", "tiny", "opt"), ("tiny-llama", "tiny", "llama"), ("opt-125m", "opt-125m", "opt")):
        made[name] = str(folder / name)
        modelgen.main([made[name], "--preset", preset, "--arch", arch])
    return made
