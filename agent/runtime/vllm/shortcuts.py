"""What a start does twice, too slowly, or one thing after the other, though nobody needs it so.

No file of vLLM is changed and no answer is different. `install` runs once per zygote, before it forks: what it has done
then, its children need not do again. `beside` fills vLLM's own caches in a thread while the main thread waits for
something else. A vLLM that lacks what a shortcut needs starts without it, at the old speed, and the zygote's log says
so. Figures: opt-125m on two cores, as a sampling profiler saw them, which slows what it looks at.
"""

import contextlib
import copy
import functools
import importlib.metadata
import inspect
import logging
import os
import sys
import threading
import time
import types


def install(platform):
    """Takes all shortcuts that belong before the fork; returns why those are not taken that this installation does not allow."""
    refused = []
    shortcuts = [_logging, _entry_points, _tokenizer_copies, _vocabularies, _fingerprints]
    if platform.device_type == "cpu":
        shortcuts += [_cpu_list, lambda: _kernels(platform)]
    for shortcut in shortcuts:
        try:
            shortcut()
        except Exception as e:
            refused.append(f"{type(e).__name__}: {e}")
    return refused


def _logging():
    """vLLM configures its loggers anew in each process, as they are already: 0.1 s, of going through thousands of them."""
    import vllm.logger

    configure, now = vllm.logger.dictConfig, None

    def once(config):
        nonlocal now
        if config != now:
            now = None
            configure(config)
            now = copy.deepcopy(config)

    vllm.logger.dictConfig = once
    for name in ("httpx", "httpx2"):
        quiet = logging.getLogger(name)
        quiet.setLevel = lambda level, q=quiet: None if q.level == level else logging.Logger.setLevel(q, level)
    vllm.logger._configure_vllm_root_logger()


def _entry_points():
    """vLLM looks for five kinds of plugins, and each time every installed package's list is read again: 0.1 s each.

    What is installed is part of a runtime's profile key: a zygote never sees it change.
    """
    found = importlib.metadata.entry_points()
    importlib.metadata.entry_points = lambda **wanted: found.select(**wanted) if wanted else found


def _cpu_list():
    """The worker asks lscpu for the CPUs: 0.1 s. Which of them it may use it still finds out by itself."""
    import vllm.utils.cpu_resource_utils as cpus

    cpus._get_cpu_list = functools.cache(cpus._get_cpu_list)
    cpus._get_cpu_list()


def _kernels(platform):
    """The CPU platform's kernels are put in place once; every worker did it anew, 0.4 s of looking at every module."""
    if register := getattr(platform, "register_triton_kernel_overrides", None):  # 0.26.0 has none, and answers None
        register()
        platform.register_triton_kernel_overrides = lambda: None


def _tokenizer_copies():
    """A copy of a tokenizer shares the vocabulary, which nobody changes, instead of writing and parsing it as JSON.

    transformers copies once per load, vLLM twice more for its pool: 0.2 s and some 20 MB each. What a copy may change by
    itself, truncation, padding and added tokens, it still has for itself.
    """
    from tokenizers import Tokenizer

    copy._deepcopy_dispatch[Tokenizer] = _copy_tokenizer


def _vocabularies():
    """A tokenizer's vocabulary as a dict is made once, and again only if tokens were added; vLLM asks for it five times,
    0.05 s each."""
    from transformers import TokenizersBackend

    make = TokenizersBackend.get_vocab

    def get_vocab(self):
        size = self._tokenizer.get_vocab_size()
        known = self.__dict__.get("_warmd_vocabulary")
        if known is None or known.size != size:
            known = self.__dict__["_warmd_vocabulary"] = _Vocabulary(size, make(self))
        return known.tokens

    TokenizersBackend.get_vocab = get_vocab


def _fingerprints():
    """Each of six parts of the API server hashes the whole configuration for the same fingerprint: 6 ms each."""
    import vllm.entrypoints.serve.utils.fingerprint as f

    build, last = f.build_system_fingerprint, None

    def build_system_fingerprint(vllm_config, mode="full", custom_value=None):
        nonlocal last
        if last is None or last[0] is not vllm_config or last[1:3] != (mode, custom_value):
            last = (vllm_config, mode, custom_value, build(vllm_config, mode, custom_value))
        return last[3]

    f.build_system_fingerprint = build_system_fingerprint


class _Vocabulary:
    """Shared by all copies of a tokenizer, as vLLM itself shares it between all who ask."""

    def __init__(self, size, tokens):
        self.size, self.tokens = size, tokens

    def __deepcopy__(self, memo):
        return self


def _copy_tokenizer(original, memo):
    twin = type(original)(original.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        value = getattr(original, part)
        if value is not None:
            setattr(twin, part, value)
    added = original.get_added_tokens_decoder()
    for _, token in sorted(added.items()):
        (twin.add_special_tokens if token.special else twin.add_tokens)([token])
    if original.truncation:
        twin.enable_truncation(**original.truncation)
    if original.padding:
        twin.enable_padding(**original.padding)
    twin.encode_special_tokens = original.encode_special_tokens
    if str(twin.get_added_tokens_decoder()) != str(added):  # ids with gaps: only the long way keeps them
        twin = type(original).from_buffer(original.to_str().encode())
    memo[id(original)] = twin
    return twin


def beside(name, step):
    """Runs a step in a thread that yields to all others; a failure is no news, for the main thread will meet it, too."""

    def run():
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        try:
            step()
        except Exception as e:
            print(f"warmd: {name}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)

    threading.Thread(target=run, name=f"warmd-{name}", daemon=True).start()


def load_tokenizer(config):
    """Into the cache from which the engine's structured outputs take it, after its worker is ready: 0.4 s earlier."""
    from vllm.tokenizers import cached_tokenizer_from_config

    if not config.model_config.skip_tokenizer_init:
        cached_tokenizer_from_config(config.model_config)


def load_processor(args):
    """Into the cache in which vLLM looks for a chat template, which it does only once its engine is ready: 0.4 s earlier."""
    from vllm.renderers.hf import _try_get_processor_chat_template as look
    from vllm.tokenizers.registry import cached_get_tokenizer

    if args.skip_tokenizer_init or args.chat_template:
        return
    while not cached_get_tokenizer.cache_info().currsize:
        time.sleep(0.02)  # the main thread needs its tokenizer first, and one of them at a time runs
    tokenizer = args.tokenizer or args.model
    known = {
        "revision": args.tokenizer_revision,
        "code_revision": args.code_revision if tokenizer == args.model else None,
        "trust_remote_code": args.trust_remote_code,
    }
    look(types.SimpleNamespace(name_or_path=tokenizer), **{k: known[k] for k in inspect.signature(look).parameters if k != "tokenizer"})


def build_app(server, args):
    """The app with its routes is built while the engine loads, not after it: 0.05 s. It is built for what nearly all models do;
    for one that does something else vLLM builds it anew.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    tasks, built, done = ("generate",), [], threading.Event()
    build, start = server.build_app, AsyncLLM.from_vllm_config

    def step(model_config):
        try:
            built.append(build(args, tasks, model_config))
        finally:
            done.set()

    def from_vllm_config(vllm_config, *rest, **more):
        beside("app", lambda: step(vllm_config.model_config))
        return start(vllm_config, *rest, **more)

    def app(args, supported_tasks=None, model_config=None):
        done.wait()
        return built[0] if built and tuple(supported_tasks or ()) == tasks else build(args, supported_tasks, model_config)

    AsyncLLM.from_vllm_config, server.build_app = from_vllm_config, app
