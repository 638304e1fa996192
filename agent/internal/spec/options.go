package spec

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// option is one engine argument that anybody may give. check nil: a switch, which
// takes no value and may be negated with --no-.
type option struct {
	check func(string) error
	// bare: a switch without a --no- form.
	bare bool
	// cold says why a value cannot be had from a parked worker, "" when it can.
	cold func(string) string
}

// allowed is the allowlist: arguments that shape how a model is served and can
// neither run code, open files or connections, nor move the endpoint.
var allowed = map[string]option{
	// size
	"--max-model-len":          {check: humanInt}, // -1 and auto are vLLM's own
	"--max-num-seqs":           {check: integer},
	"--max-num-batched-tokens": {check: humanInt},
	"--max-num-partial-prefills": {
		check: integer},
	"--long-prefill-token-threshold": {check: integer},
	"--max-logprobs":                 {check: integer},
	"--stream-interval":              {check: integer},
	"--seed":                         {check: integer},
	"--block-size":                   {check: integer},
	"--num-gpu-blocks-override":      {check: integer},
	"--kv-cache-memory-bytes":        {check: humanInt},
	"--gpu-memory-utilization":       {check: fraction},
	"--device-memory-utilization":    {check: fraction},
	"--cpu-offload-gb":               {check: number},
	// numbers and their formats
	"--dtype":          {check: oneOf("auto", "bfloat16", "float", "float16", "float32", "half")},
	"--kv-cache-dtype": {check: word},
	"--quantization":   {check: word},
	// how weights are read. What is not here unpickles, or fetches from elsewhere.
	"--load-format":               {check: oneOf("auto", "safetensors", "dummy", "sharded_state", "fastsafetensors", "runai_streamer", "instanttensor", "mistral", "bitsandbytes", "gguf", "ipc_cache")},
	"--safetensors-load-strategy": {check: oneOf("eager", "lazy", "prefetch")},
	"--config-format":             {check: oneOf("auto", "hf", "mistral")},
	"--tokenizer-mode":            {check: oneOf("auto", "hf", "slow", "mistral")},
	"--generation-config":         {check: oneOf("auto", "vllm")}, // else it is a folder
	// what is built
	"--runner":                     {check: oneOf("auto", "generate", "pooling", "draft")},
	"--convert":                    {check: oneOf("auto", "none", "embed", "classify")},
	"--enforce-eager":              {},
	"--optimization-level":         {check: oneOf("0", "1", "2", "3")},
	"--max-cudagraph-capture-size": {check: integer},
	"--attention-backend":          {check: word},
	"--enable-flashinfer-autotune": {},
	"--disable-cascade-attn":       {},
	"--disable-sliding-window":     {},
	"--disable-custom-all-reduce":  {},
	"--language-model-only":        {},
	"--limit-mm-per-prompt":        {check: counts},
	"--enable-sleep-mode":          {},
	// scheduling
	"--enable-prefix-caching":        {},
	"--prefix-caching-hash-algo":     {check: word},
	"--enable-chunked-prefill":       {},
	"--async-scheduling":             {},
	"--scheduling-policy":            {check: oneOf("fcfs", "priority")},
	"--disable-chunked-mm-input":     {},
	"--calculate-kv-scales":          {},
	"--disable-log-stats":            {bare: true},
	"--enable-log-requests":          {},
	"--max-log-len":                  {check: integer},
	"--disable-uvicorn-access-log":   {},
	"--uvicorn-log-level":            {check: oneOf("critical", "error", "warning", "info", "debug", "trace")},
	"--enable-server-load-tracking":  {},
	"--enable-prompt-tokens-details": {},
	"--enable-force-include-usage":   {},
	"--return-tokens-as-token-ids":   {},
	"--disable-fastapi-docs":         {},
	// LoRA: adapters themselves are folders, see refused
	"--enable-lora":         {},
	"--max-loras":           {check: integer},
	"--max-lora-rank":       {check: integer},
	"--max-cpu-loras":       {check: integer},
	"--lora-dtype":          {check: word},
	"--fully-sharded-loras": {},
	// chat
	"--chat-template-content-format":        {check: oneOf("auto", "string", "openai")},
	"--response-role":                       {check: word},
	"--tool-call-parser":                    {check: word},
	"--enable-auto-tool-choice":             {},
	"--exclude-tools-when-tool-choice-none": {},
	"--reasoning-parser":                    {check: word},
	chatTemplate:                            {check: nonEmpty}, // args.go: a file inside the model folder
	servedName:                              {check: servedWord},
	"--tensor-parallel-size":                {check: integer, cold: moreThanOne("--tensor-parallel-size")},
	"--pipeline-parallel-size":              {check: integer, cold: moreThanOne("--pipeline-parallel-size")},
	"--enable-expert-parallel":              {},
}

const (
	chatTemplate = "--chat-template"
	servedName   = "--served-model-name"
)

// short spells the short options that people use. -O is in args.go.
var short = map[string]string{"-q": "--quantization", "-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size"}

// refused names arguments that an operator may allow, and why nobody else may.
// A trailing * matches any rest.
var refused = []struct{ name, why string }{
	{"--trust-remote-code", "it runs Python code from the model folder"},
	{"--worker-extension-cls", "it imports a class by name"},
	{"--worker-cls", "it imports a class by name"},
	{"--scheduler-cls", "it imports a class by name"},
	{"--distributed-executor-backend", "it can import a class by name"},
	{"--middleware", "it imports code into the API server"},
	{"--logits-processors", "it imports classes by name"},
	{"--io-processor-plugin", "it loads a plugin"},
	{"--tool-parser-plugin", "it runs a Python file"},
	{"--reasoning-parser-plugin", "it runs a Python file"},
	{"--model-class-overrides", "it imports a class by name"},
	{"--model-impl", "it can run Python code from the model folder"},
	{"--model-loader-extra-config", "it can name files and servers"},
	{"--hf-overrides", "it can name code to import"},
	{"--hf-config-path", "it reads a folder outside the model"},
	{"--hf-token", "a secret in a request ends up in records and process lists: put it into the runtime's env"},
	{"--api-key", "a secret in a request ends up in records and process lists: put it into the runtime's env as VLLM_API_KEY"},
	{"--allowed-local-media-path", "it lets every client read files of this host"},
	{"--allowed-media-domains", "it decides which servers the engine fetches from"},
	{"--trust-request-*", "it lets clients run templates of their own"},
	{"--tokenizer", "it reads a folder outside the model"},
	{"--tokenizer-revision", "models are folders on this host"},
	{"--revision", "models are folders on this host"},
	{"--code-revision", "models are folders on this host"},
	{"--download-dir", "it writes outside the runtime's folder"},
	{"--lora-modules", "it reads folders outside the model"},
	{"--default-mm-loras", "it reads folders outside the model"},
	{"--speculative-config", "it can name another model folder"},
	{"--spec-*", "it can name another model folder"},
	{"--config", "it takes any argument from a file"},
	{"--ssl-*", "the endpoint is warmd's"},
	{"--enable-ssl-refresh", "the endpoint is warmd's"},
	{"--root-path", "the endpoint is warmd's"},
	{"--allow-credentials", "it opens the endpoint to other origins"},
	{"--allowed-*", "it opens the endpoint to other origins"},
	{"--tool-server", "it connects to other servers"},
	{"--otlp-*", "warmd receives the traces of a start"},
	{"--collect-detailed-traces", "warmd receives the traces of a start"},
	{"--log-config-file", "it can import code by name"},
	{"--logging-config", "it can import code by name"},
	{"--profiler-config", "it writes files"},
	{"--kv-transfer-config", "it connects to other servers"},
	{"--kv-events-config", "it connects to other servers"},
	{"--ec-*", "it connects to other servers"},
	{"--weight-transfer-config", "it connects to other servers"},
	{"--additional-config", "plugins read it"},
	{"--compilation-config", "it can import code by name: use -O0 to -O3"},
	{"--plugin*", "it loads a plugin"},
	{"--data-parallel-*", "one placement is one engine"},
	{"--master-*", "one placement is one engine"},
	{"--nnodes", "one placement is one engine"},
	{"--node-rank", "one placement is one engine"},
}

// reserved names arguments that nobody may give, because warmd gives them itself.
var reserved = map[string]string{
	"--host":             "warmd chooses the endpoint",
	"--port":             "warmd chooses the endpoint",
	"--uds":              "warmd chooses the endpoint",
	"--grpc":             "warmd chooses the endpoint",
	"--grpc-port":        "warmd chooses the endpoint",
	"--model":            "the request's model is the model",
	"--model-tag":        "the request's model is the model",
	"--headless":         "a placement has exactly one API server",
	"--api-server-count": "a placement has exactly one API server",
	"--help":             "it would end the engine",
	"-h":                 "it would end the engine",
	"--":                 "it would end the options",
}

// why gives the reason of a refusal, "" when nothing is known about the name.
func why(name string) string {
	name = positive(name)
	for _, r := range refused {
		if pre, ok := strings.CutSuffix(r.name, "*"); r.name == name || (ok && strings.HasPrefix(name, pre)) {
			return r.why
		}
	}
	return ""
}

var (
	wordRE   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	humanRE  = regexp.MustCompile(`^([0-9]{1,18}(\.[0-9]{1,6})?[kKmMgGtT]?|-1|auto)$`)
	countsRE = regexp.MustCompile(`^\{ *("[a-z]{1,16}" *: *[0-9]{1,4} *(, *"[a-z]{1,16}" *: *[0-9]{1,4} *)*)?\}$`)
	// servedRE is what placement.Request allows as a name.
	servedRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$`)
)

func matches(re *regexp.Regexp, what string) func(string) error {
	return func(v string) error {
		if !re.MatchString(v) {
			return fmt.Errorf("takes %s", what)
		}
		return nil
	}
}

var (
	word       = matches(wordRE, "one word")
	humanInt   = matches(humanRE, "a whole number such as 4096 or 4k")
	counts     = matches(countsRE, `counts such as {"image": 2}`)
	servedWord = matches(servedRE, "a name of letters, digits and . _ / : -")
)

func nonEmpty(v string) error {
	if v == "" {
		return errors.New("is empty")
	}
	return nil
}

func integer(v string) error {
	if _, err := strconv.ParseInt(v, 10, 64); err != nil || strings.HasPrefix(v, "+") {
		return errors.New("takes a whole number")
	}
	return nil
}

var numberRE = regexp.MustCompile(`^[0-9]{1,9}(\.[0-9]{1,9})?$`)

var number = matches(numberRE, "a number")

func fraction(v string) error {
	if f, err := strconv.ParseFloat(v, 64); err != nil || !numberRE.MatchString(v) || f <= 0 || f > 1 {
		return errors.New("takes a number above 0 and up to 1")
	}
	return nil
}

func oneOf(vals ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(vals, v) {
			return fmt.Errorf("takes one of %s", strings.Join(vals, ", "))
		}
		return nil
	}
}

// moreThanOne: a parked pair is one engine process on one device.
func moreThanOne(name string) func(string) string {
	return func(v string) string {
		if n, _ := strconv.Atoi(v); n != 1 {
			return fmt.Sprintf("%s=%s: a parked worker is one process on one device", name, v)
		}
		return ""
	}
}
