"""Turns a failed load into one line that a human understands: what is wrong, and in which file.

vLLM's own message is often a symptom ("Engine core initialization failed. See root cause above"), and on the CPU
platform the cause is in the log of a grandchild. So after a failure, never before, we look at the model's folder with
fresh eyes, then at the chain of exceptions, then at the end of our own log.
"""

import json
import os
import re
import struct
import sys
import traceback

_VAGUE = re.compile(
    r"see (the )?(root cause|stack trace|stack above|error)|background process|initialization failed|engine core|EngineDead", re.I
)
_LOGGED = re.compile(r"(?:^|\s)((?:[A-Za-z_][\w.]*)?(?:Error|Exception|Exit|Interrupt)): (\S.*)$")


def message(exc, load=None):
    """The one line about a failed `load` request."""
    found = look_at_model(model_of(load))
    if found:
        return found
    for e in _chain(exc):
        text = _one_line(e)
        if text and not _VAGUE.search(text):
            return text
    return last_logged_error() or _one_line(exc) or type(exc).__name__


def detail(exc, lines=30):
    """The end of the traceback, for those who want more."""
    text = "".join(traceback.format_exception(exc)).rstrip().splitlines()
    return "\n".join(text[-lines:])[-8000:]


def model_of(load):
    """The value of --model in a load request."""
    argv = [str(a) for a in (load or {}).get("argv", [])]
    for i, a in enumerate(argv):
        if a == "--model" and i + 1 < len(argv):
            return argv[i + 1]
        if a.startswith("--model="):
            return a.split("=", 1)[1]
    return None


def look_at_model(model):
    """What is visibly wrong with a model folder, as a sentence, or None."""
    if not model or not os.path.isabs(model):
        return None  # a name on a hub, not a folder
    if not os.path.isdir(model):
        return f"model folder {model} does not exist"
    config = os.path.join(model, "config.json")
    if not os.path.exists(config):
        return f"config.json is missing in model folder {model}"
    try:
        with open(config, encoding="utf-8") as f:
            parsed = json.load(f)
    except (OSError, ValueError) as e:
        return f"{config} cannot be read: {e}"
    for name in sorted(os.listdir(model)):
        if name.endswith(".safetensors"):
            wrong = look_at_safetensors(os.path.join(model, name))
            if wrong:
                return wrong
    return _look_at_architecture(config, parsed)


def look_at_safetensors(path):
    """Checks the header against the file's size, which finds broken downloads; the weights themselves are not read."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            head = f.read(8)
            if len(head) < 8:
                return f"{path} is truncated: {size} bytes are no safetensors file"
            n = struct.unpack("<Q", head)[0]
            if n > min(size - 8, 100 << 20):
                return f"{path} is corrupt or truncated: its header claims {n} bytes, the file has {size}"
            header = json.loads(f.read(n))
        end = max((t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"), default=0)
    except OSError as e:
        return f"{path} cannot be read: {e.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"{path} is corrupt: its header is not valid safetensors JSON"
    if size != 8 + n + end:
        return f"{path} is {'truncated' if size < 8 + n + end else 'corrupt'}: the header describes {8 + n + end} bytes, the file has {size}"
    return None


def _look_at_architecture(config, parsed):
    names = parsed.get("architectures") if isinstance(parsed, dict) else None
    if not names:
        return f"{config} names no architectures"
    if "vllm" not in sys.modules:  # not worth an import of ten seconds; in a worker it is there
        return None
    try:
        from vllm.model_executor.models.registry import ModelRegistry

        known = set(ModelRegistry.get_supported_archs())
    except Exception:
        return None
    if not known.intersection(names):
        return f"{config}: this vLLM does not know the model architecture {', '.join(map(str, names))}"
    return None


def last_logged_error(limit=1 << 16):
    """The last exception line in our own log, where a forked vLLM worker wrote its traceback."""
    try:
        with open("/proc/self/fd/2", "rb") as f:  # the log file itself: we only hold it for appending
            f.seek(max(0, os.fstat(f.fileno()).st_size - limit))
            lines = f.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        m = _LOGGED.search(line)
        if m and not _VAGUE.search(m.group(2)):
            return f"{m.group(1).rsplit('.', 1)[-1]}: {m.group(2)}"[:500]
    return None


def _chain(exc):
    """The exception and its causes, root cause first."""
    chain = []
    while exc is not None and exc not in chain:
        chain.append(exc)
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    return reversed(chain)


def _one_line(exc):
    text = " ".join(str(exc).split())
    name = type(exc).__name__
    if name == "BadArguments":
        return text[:500]
    return (f"{name}: {text}" if text else "")[:500]
