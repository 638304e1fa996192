#!/usr/bin/env python3
"""Rehearses a runtime: loads a real model once, parked, and records what the next zygote should import beforehand.

    VENV/bin/python rehearse.py --runtime DIR

`warmd runtime add` runs it. It reads DIR/runtime.json, makes tiny models in DIR/model and DIR/model-llama, and
  1. starts a zygote without a profile, loads both models for real, lets each answer. This also fills the caches under
     DIR/cache (vLLM's model inspection alone costs 20 s the first time);
  2. asks both halves what they have imported by then, and audits the difference in a process of its own: a module that
     fails, starts a thread or touches CUDA when imported must not be imported before a fork;
  3. starts a second zygote with that profile, which must be clean, and loads again: the answers must be the same.
Then, and only then, DIR/profile.json is replaced. Progress goes to stdout as JSON lines {"step","elapsed_s"}.
Exit codes: 0 done, 2 wrong use or manifest, 3 the runtime does not work, 4 the profile does not hold.
"""

import argparse
import datetime
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPTS = ("Hello my name is", "The quick brown fox")
# Never importable by name, or not ours to import.
SKIP_TOP = {"__main__", "__mp_main__", "adapter", "api", "engine", "half", "control", "process", "explain", "children", "zygote", "born", "cgroup", "sleeping", "kernels", "shortcuts"}
SKIP_PARTS = ("transformers_modules", "__mp", "<")


class Problem(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Progress:
    def __init__(self):
        self.began = time.monotonic()

    def __call__(self, step, **more):
        print(json.dumps({"step": step, "elapsed_s": round(time.monotonic() - self.began, 2), **more}), flush=True)


def read_manifest(folder):
    path = os.path.join(folder, "runtime.json")
    try:
        with open(path, encoding="utf-8") as f:
            m = json.load(f)
    except (OSError, ValueError) as e:
        raise Problem(2, f"cannot read {path}: {e}") from None
    if m.get("kind", "vllm") != "vllm":
        raise Problem(2, f"{path}: only a runtime of kind vllm is rehearsed, this is {m.get('kind')!r}")
    if not isinstance(m.get("env"), dict):
        raise Problem(2, f'{path} has no "env"')
    return m


def make_models(folder, progress):
    import modelgen

    models = []
    for arch, name in (("opt", "model"), ("llama", "model-llama")):
        path = os.path.join(folder, name)
        if not os.path.exists(os.path.join(path, "config.json")):
            progress(f"making a tiny {arch} model")
            modelgen.generate(path, modelgen.options([path, "--preset", "tiny", "--arch", arch]))
        models.append(path)
    return models


def load_and_ask(zygote, model, device):
    """One parked load; (what it answered, modules of the engine, modules of the api, seconds to the first answer)."""
    import drive

    pair = zygote.pair(device)
    record = tempfile.TemporaryDirectory(dir=zygote.dir)
    began = time.monotonic()
    pair.load(["--model", model, "--served-model-name", "m", *drive.SMALL], env={"WARMD_RECORD": record.name})
    try:
        answers = [pair.ask(prompt=PROMPTS[0])]
        took = time.monotonic() - began
        answers += [pair.ask(prompt=p) for p in PROMPTS[1:]]
        answers.append(pair.ask(path="/v1/chat/completions"))
        answers.append(pair.ask(stream=True))
    except OSError:
        reasons = [e["message"] for c in (pair.engine, pair.api) for e in _events(c) if e.get("ev") == "error"]
        why = reasons[0] if reasons else f"engine log: {drive.tail(pair.log('engine'))}\napi log: {drive.tail(pair.log('api'))}"
        raise Problem(3, f"loading {model} failed: {why}") from None
    of_engine, of_api = (c.call("modules")["modules"] for c in (pair.engine, pair.api))
    of_engine += [m for m in recorded(record.name) if m not in of_engine]
    pair.kill()
    record.cleanup()
    return answers, of_engine, of_api, took


def recorded(folder):
    """What the processes that vLLM itself forked have imported (engine.record_imports), as they say after this call."""
    asked, modules = time.time_ns(), []
    for path in glob.glob(os.path.join(folder, "*.json")):
        for _ in range(100):
            if os.stat(path).st_mtime_ns > asked:
                break
            time.sleep(0.05)
        with open(path, encoding="utf-8") as f:
            modules += json.load(f)
    return modules


def _events(c):
    try:
        while True:
            c.wait(lambda e: e["ev"] == "error", timeout=2)
            return c.events
    except (EOFError, OSError, TimeoutError):
        return c.events


def candidates(*loads):
    """Modules in order of first import, without those that cannot be imported by name."""
    seen = {}
    for modules in loads:
        for name in modules:
            if name.split(".")[0] not in SKIP_TOP and not any(p in name for p in SKIP_PARTS):
                seen[name] = None
    return list(seen)


def audit(env, names, after_fork, progress):
    """Sorts candidates into (modules, after_fork, failed); every round in a fresh process, until one is clean."""
    failed = {}
    for _ in range(8):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump(names, f)
            f.flush()
            p = subprocess.run(
                [sys.executable, os.path.join(HERE, "rehearse.py"), "--audit", f.name], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        try:
            report = json.loads(p.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            raise Problem(3, f"the audit of the profile failed (exit {p.returncode}): {p.stderr[-2000:]}") from None
        failed.update(report["failed"])
        dirty = set(report["dirty"])
        names = [n for n in report["new"] if n not in dirty]
        after_fork += [n for n in report["dirty_roots"] if n not in after_fork]
        progress("audited the profile", modules=len(names), dirty=len(dirty), failed=len(failed))
        if not dirty:
            return names, after_fork, failed
    raise Problem(4, "modules keep starting threads or touching CUDA when imported: no clean profile found")


def run_audit(path):
    """In the fresh process: imports one candidate after the other and watches what each does."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import adapter
    import process

    with open(path, encoding="utf-8") as f:
        names = json.load(f)
    sys.path[:] = [x for x in sys.path if os.path.abspath(x or ".") != HERE]
    adapter.Adapter()
    report = {"new": [], "dirty": [], "dirty_roots": [], "failed": {}}
    hazards = process.fork_hazards()
    if hazards:
        raise SystemExit(f"before any profile: {', '.join(hazards)}")
    base = set(sys.modules)
    for name in names:
        if name in base:
            continue
        before = set(sys.modules)
        why = adapter._try_import(name)
        now = process.fork_hazards()
        if len(now) > len(hazards):
            # Whatever came along is suspect: it may hold the real culprit. All of it stays out of the zygote.
            report["dirty"] += [m for m in sys.modules if m not in before]
            report["dirty"].append(name)
            report["dirty_roots"].append(name)
        hazards = now
        if why:
            report["failed"][name] = why
        else:
            report["new"].append(name)
    print("\n" + json.dumps(report), flush=True)
    os._exit(0)  # threads that a module started must not hold us up


def write_profile(folder, profile):
    path = os.path.join(folder, "profile.json")
    with open(path + ".part", "w", encoding="utf-8") as f:
        json.dump(profile, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".part", path)
    return path


def rehearse(folder, progress):
    import drive

    manifest = read_manifest(folder)
    env = {k: str(v) for k, v in manifest["env"].items()}
    device = manifest.get("device", "cpu")
    models = make_models(folder, progress)
    manifest_path = os.path.join(folder, "runtime.json")

    def start(profile=None):
        try:
            return drive.Zygote(sys.executable, env, profile=profile, manifest=manifest_path)
        except drive.ZygoteDied as e:
            raise Problem(4 if profile else 3, str(e)) from None

    progress("starting a zygote without a profile")
    z = start()
    try:
        progress("zygote is up", import_s=z.hello["import_s"], version=z.hello["version"])
        first = []
        for m in models:
            first.append(load_and_ask(z, m, device))
            progress(f"loaded {os.path.basename(m)} without a profile", first_answer_s=round(first[-1][3], 2))
    finally:
        z.close()
    names = candidates(*(modules for load in first for modules in load[1:3]))
    names, after_fork, failed = audit(env, names, [], progress)
    profile = {
        "engine": "vllm",
        "version": z.hello["version"],
        "modules": names,
        "after_fork": after_fork,
        "failed": failed,
        "recorded": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(profile, f)
        f.flush()
        progress("starting a zygote with the profile")
        z = start(f.name)
        try:
            progress("zygote is up", import_s=z.hello["import_s"], profile_modules=z.hello["profile_modules"])
            for m, before in zip(models, first):
                again = load_and_ask(z, m, device)
                if again[0] != before[0]:
                    raise Problem(4, f"{m} answers differently with the profile: {before[0]} became {again[0]}")
                progress(f"loaded {os.path.basename(m)} with the profile, same answers", first_answer_s=round(again[3], 2))
        finally:
            z.close()
    path = write_profile(folder, profile)
    progress("done", profile=path, modules=len(names), after_fork=len(after_fork))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--runtime", metavar="DIR")
    p.add_argument("--audit", help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.audit:
        run_audit(o.audit)
    if not o.runtime:
        p.error("--runtime is needed")
    progress = Progress()
    try:
        rehearse(os.path.abspath(o.runtime), progress)
    except Problem as e:
        progress("failed", error=str(e))
        print(f"rehearse: {e}", file=sys.stderr)
        sys.exit(e.code)


if __name__ == "__main__":
    main()
